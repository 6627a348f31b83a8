"""`alit tokenize`: what `load_dataset` reads comes out, on disk or on the Hub, or one line says why not."""

import io
import json
import shutil

import datasets
import pytest
import torch
from hub_server import LFS_UPLOAD, READ_TOKEN
from huggingface_hub import HfApi
from PIL import Image
from tar_data import cut, member_ends, samples, write_tar
from token_data import contents, write_parquet

from alit_hf.cli import tokenize as tokenize_command
from alit_hf.model.image_io import open_image
from alit_hf.token_datasets import TokenDatasetInfo, TokenDecoder


NAMES = ["a.jpg", "a.png", "b.webp", "sub/c.JPG", "sub/deeper/d.tif"]


@pytest.fixture
def tokenize(alit, photos, tmp_path, tiny_model):
    """Runs the command on the photos with the tiny model, where nothing else is given."""

    def run(*arguments, data=(photos,), output=tmp_path / "out", model=tiny_model):
        return alit("tokenize", *data, "--output", output, "--model", model, *arguments)

    return run


def load(folder) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))


def test_a_folder_of_photos(tokenize, tmp_path, photos, loaded):
    result = tokenize("--threshold", "0.3", "--rows-per-shard", 2)
    assert (result.code, result.errors) == (0, [])
    codes = load(tmp_path / "out")
    assert codes["file_name"][:] == NAMES
    model, processor = loaded
    for row in codes:
        pixel_values = processor(open_image(photos / row["file_name"]), return_tensors="pt").pixel_values
        with torch.no_grad():
            code = model.encode(pixel_values, threshold=0.3)
        assert row["token_ids"] == code.token_ids[0].tolist()
        assert row["original_size"] == list(Image.open(photos / row["file_name"]).size)
    counts = codes["num_tokens"][:]
    unsatisfied = sum(score >= 0.3 for score in codes["score"])
    assert result.out == (
        f"{tmp_path / 'out'}: 5 images, {min(counts)} to {max(counts)} tokens, {sum(counts) / 5:.1f} on average"
        + (f"; {unsatisfied} not below the threshold" if unsatisfied else "")
        + "\n"
    )
    info = TokenDatasetInfo.load(tmp_path / "out")
    assert (info.model, info.sources, info.threshold) == ("tiny", ["photos"], 0.3)
    assert len(TokenDecoder(info, model, processor).decode(codes[:])) == 5


@pytest.mark.parametrize("same_folder", [True, False])
def test_what_is_cached_of_other_tokens_is_not_taken_for_these(tokenize, tmp_path, same_folder):
    folders = [tmp_path / name / "tokens" for name in ("first", "first" if same_folder else "second")]
    for folder, num_tokens in zip(folders, (4, 8), strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        assert tokenize("--num-tokens", num_tokens, output=folder).code == 0
        codes = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert set(codes["num_tokens"]) == {num_tokens}


def test_json_sums_up_the_data_set(tokenize, tmp_path, photos):
    (photos / "broken.png").write_bytes(b"no picture")
    expected = {
        "output": str(tmp_path / "out"),
        "commit": None,
        "num_images": 5,
        "num_tokens": 60,
        "lengths": {"12": 5},
        "num_undecodable": 1,
        "num_unsatisfied": 5,
        "damage": [],
    }
    for was_complete in (False, True):
        result = tokenize("--threshold", "0.0001", "--json")
        assert (result.code, len(result.errors)) == (1, 1)
        assert result.json == {**expected, "was_complete": was_complete}


def test_a_fixed_length_and_another_criterion(tokenize, tmp_path):
    assert "8 to 8 tokens" in tokenize("--num-tokens", 8, output=tmp_path / "fixed").out
    result = tokenize("--criterion", "psnr", "--threshold", 99, output=tmp_path / "psnr")
    assert "12 to 12 tokens, 12.0 on average; 5 not above the threshold" in result.out
    assert min(load(tmp_path / "psnr")["score"]) > 1
    assert "bring `psnr` above 99 dB, or in all" in " ".join((tmp_path / "psnr" / "README.md").read_text().split())


def test_data_sets_with_negative_decibels_decode_and_are_not_continued(tokenize, tmp_path, loaded):
    tokenize("--criterion", "psnr", "--threshold", 5)
    path = tmp_path / "out" / "tokenization.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": -5.0}))
    assert len(TokenDecoder(tmp_path / "out", *loaded).decode(load(tmp_path / "out")[:])) == 5
    result = tokenize("--criterion", "psnr", "--threshold", 5)
    assert result.code == 2
    assert "holds tokens of another run, threshold was -5.0 and is now 5.0" in result.errors[0]


def test_the_same_command_again_changes_nothing(tokenize, tmp_path):
    first = tokenize("--threshold", "0.3")
    before = contents(tmp_path / "out")
    again = tokenize("--threshold", "0.3")
    complete = f"{tmp_path / 'out'} was complete, nothing was tokenized: 5 images, "
    assert again.code == 0
    assert again.out.startswith(complete)
    assert again.out.removeprefix(complete) == first.out.removeprefix(f"{tmp_path / 'out'}: 5 images, ")
    assert contents(tmp_path / "out") == before


def test_an_output_that_lacks_a_shard_was_not_complete(tokenize, tmp_path):
    first = tokenize("--num-tokens", 4, "--rows-per-shard", 2)
    (tmp_path / "out" / "data" / "train-00000-00001.parquet").unlink()
    assert tokenize("--num-tokens", 4, "--rows-per-shard", 2).out == first.out


def test_one_image_is_no_images(tokenize, tmp_path, photos):
    (photos / "a.jpg").write_bytes(b"no picture")
    result = tokenize("--num-tokens", 4, data=[photos / "a.jpg", photos / "a.png"])
    assert result.out == f"{tmp_path / 'out'}: 1 image, 4 to 4 tokens, 4.0 on average\n"
    assert result.errors[0].startswith("alit: error: 1 image could not be decoded")
    assert "1 image with 4 tokens." in (tmp_path / "out" / "README.md").read_text()


def test_undecodable_pictures_are_counted_and_listed_without_folders_of_this_machine(tokenize, tmp_path, photos):
    (photos / "sub" / "c.JPG").write_bytes(b"no picture")
    (photos / "scan.bmp").write_bytes(b"no picture either")
    (photos / "notes.txt").touch()
    result = tokenize("--num-tokens", 4)
    assert result.code == 1
    assert f"alit: note: {photos}: 1 file was passed over, " in result.err
    assert result.errors == [
        f"alit: error: 2 images could not be decoded, {tmp_path / 'out'} lists them in undecodable.jsonl"
    ]
    listed = [json.loads(line) for line in (tmp_path / "out" / "undecodable.jsonl").read_text().splitlines()]
    assert [image["file_name"] for image in listed] == ["scan.bmp", "sub/c.JPG"]
    assert result.out.startswith(f"{tmp_path / 'out'}: 4 images")
    assert tokenize("--num-tokens", 4, data=[f"{photos}/[as]*"], output=tmp_path / "pattern").code == 1
    for output in ("out", "pattern"):
        assert not any(str(tmp_path).encode() in content for content in contents(tmp_path / output).values())


def test_only_undecodable_pictures_fail(tokenize, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    result = tokenize(data=[tmp_path / "a.png"])
    assert (result.code, result.out) == (1, "")
    assert result.errors == [f"alit: error: none of 1 image can be decoded, see {tmp_path / 'out'}"]


@pytest.fixture
def tars(tmp_path):
    """Two tars, of which the first breaks off in its third sample, and what it was before."""
    (tmp_path / "tars").mkdir()
    for number in range(2):
        write_tar(tmp_path / "tars" / f"{number}.tar", samples(range(10 * number, 10 * number + 4)))
    before = (tmp_path / "tars" / "0.tar").read_bytes()
    cut(tmp_path / "tars" / "0.tar", member_ends(tmp_path / "tars" / "0.tar")[4] + 600)
    return tmp_path / "tars", before


def test_damaged_files_are_named_and_go_on_once_they_are_whole(tokenize, tmp_path, tars):
    data, before = tars
    for start in (": 6 images", " has what can be read, nothing was tokenized: 6 images"):
        result = tokenize("--num-tokens", 4, data=[data])
        assert result.code == 1
        assert result.out.startswith(f"{tmp_path / 'out'}{start}")
        assert [line.removeprefix("alit: error: ") for line in result.errors] == [
            "0.tar is damaged, what is behind its first 2 rows cannot be read: unexpected end of data",
            "once these files are whole, the same command goes on with them",
        ]
    (data / "0.tar").write_bytes(before)
    result = tokenize("--num-tokens", 4, data=[data])
    assert (result.code, result.errors) == (0, [])
    assert result.out.startswith(f"{tmp_path / 'out'}: 8 images")
    assert (tmp_path / "out" / "undecodable.jsonl").read_text() == ""


def test_data_without_pictures_are_a_sentence_with_their_columns(tokenize, tmp_path):
    write_tar(tmp_path / "a.tar", {"0.txt": b"words", "0.json": b'{"a": 1}'})
    result = tokenize(data=[tmp_path / "a.tar"])
    assert (result.code, result.out, len(result.errors)) == (2, "", 1)
    assert "a.tar has no column `image`, and 0 columns of pictures among " in result.errors[0]
    assert "`txt` (string)" in result.errors[0]


def test_a_failure_on_the_way_says_how_to_go_on(tokenize, tmp_path, monkeypatch):
    from alit_hf import ALITModel

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(ALITModel, "encode", fail)
        result = tokenize()
    assert result.code == 1
    assert result.errors == [
        f"alit: error: tokenizing failed: CUDA out of memory (what is in {tmp_path / 'out'} stays, the same command "
        "goes on from there)"
    ]
    assert tokenize().code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "0.1", "--num-tokens", "4"], "not allowed with argument"),
        (["--num-tokens", "6"], "`num_tokens` is 6, it must be a multiple of 4 between 4 and 12"),
        (["--criterion", "beauty", "--threshold", "1"], "`criterion` is 'beauty', it must be one of"),
        (["--rows-per-shard", "0"], "--rows-per-shard: it is '0', it must be a whole number from 1"),
        (["--split", "test"], "DATASET: the split 'test' does not exist, the data set"),
        (["--model", "."], "the model . holds no ALIT model"),
        (["--output", "PHOTOS/codes"], "/photos, it must be elsewhere"),
        (["--output", "nobody/nothing"], "nobody/nothing is on the Hub, which is not asked while HF_HUB_OFFLINE"),
    ],
)
def test_wrong_use_does_nothing(tokenize, tmp_path, photos, monkeypatch, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("ALIT_HF_CACHE", str(empty / "cache"))
    before = contents(photos)
    result = tokenize(*[argument.replace("PHOTOS", str(photos)) for argument in arguments], output=empty / "out")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(empty.iterdir()) == []
    assert contents(photos) == before


def test_an_output_of_another_run_is_refused(tokenize, other_model, tmp_path):
    assert tokenize("--num-tokens", 4).code == 0
    for arguments, message in (
        (["--num-tokens", 8], "num_tokens was 4 and is now 8: choose another output, or delete it"),
        (["--num-tokens", 4, "--model", other_model], "fingerprint was"),
    ):
        result = tokenize(*arguments)
        assert (result.code, result.out) == (2, "")
        assert message in result.err


def test_names_of_folders_are_no_hub_ids(tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    on_the_hub = {name: tokenize_command._is_on_the_hub(name) for name in ("outputs/codes", "someone/codes")}
    assert on_the_hub == {"outputs/codes": False, "someone/codes": True}
    for name in ("codes", "./someone/codes", "someone/codes/", "/someone/codes", "a/b/c", "~/codes"):
        assert not tokenize_command._is_on_the_hub(name)


class TestHub:
    REPO = "tester/codes"

    def files(self, hub) -> dict[str, bytes]:
        files = dict(hub.files(f"datasets/{self.REPO}"))
        del files[".gitattributes"]
        return files

    def test_one_push_is_one_commit_with_everything(self, tokenize, hub, tmp_path, loaded):
        result = tokenize("--num-tokens", 8, "--rows-per-shard", 3, output=self.REPO)
        assert result.code == 0, result.err
        folder = tmp_path / "cache" / "tokenized" / "tester--codes"
        assert self.files(hub) == contents(folder)
        assert hub.messages(f"datasets/{self.REPO}") == ["Tokens by alit tokenize"]
        assert result.out.splitlines()[0] == f"{hub.url}/datasets/{self.REPO}/commit/" + (
            hub.repos[f"datasets/{self.REPO}"].commits[-1].sha
        )
        assert TokenDatasetInfo.load(self.REPO) == TokenDatasetInfo.load(folder)
        assert len(TokenDecoder(self.REPO, *loaded).decode(load(folder)[:])) == 5
        again = tokenize("--num-tokens", 8, "--rows-per-shard", 3, "--json", output=self.REPO).json
        assert again["commit"].startswith(f"{hub.url}/datasets/{self.REPO}/commit/")
        assert again["output"] == str(folder)

    def test_a_new_repository_is_private_and_another_stays_as_it_is(self, tokenize, hub):
        assert tokenize("--num-tokens", 8, output=self.REPO).code == 0
        assert hub.repos[f"datasets/{self.REPO}"].private
        HfApi().create_repo("tester/public", repo_type="dataset")
        assert tokenize("--num-tokens", 8, output="tester/public").code == 0
        assert not hub.repos["datasets/tester/public"].private

    def test_from_the_hub_to_the_hub(self, tokenize, hub, tmp_path):
        for split, numbers in (("train", [1, 2]), ("test", [3, 4, 6])):
            write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", numbers)
        HfApi().create_repo("tester/photos", repo_type="dataset")
        HfApi().upload_folder(
            repo_id="tester/photos", folder_path=tmp_path, repo_type="dataset", allow_patterns="*.parquet"
        )
        result = tokenize("--num-tokens", 8, data=["tester/photos"], output=self.REPO)
        assert result.code == 2
        assert "no split is given, the data set tester/photos has train, test" in result.err

        result = tokenize("--num-tokens", 8, "--split", "test", data=["tester/photos"], output=self.REPO)
        assert result.code == 0, result.err
        loaded = datasets.load_dataset(self.REPO, split="test", cache_dir=str(tmp_path / "datasets"))
        assert loaded["file_name"][:] == ["3.png", "4.png", "6.png"]
        assert loaded["caption"][:] == [None, "caption 4", "caption 6"]

    def test_what_was_not_pushed_is_pushed_by_the_same_command(self, tokenize, hub, monkeypatch):
        hub.fail("PUT", LFS_UPLOAD, status=400)
        result = tokenize("--num-tokens", 8, output=self.REPO)
        assert result.code == 1
        assert "tester/codes was not pushed" in result.errors[0]
        assert "the same command pushes" in result.errors[0]
        assert hub.messages(f"datasets/{self.REPO}") == []
        monkeypatch.setattr("alit_hf.codes.picture_codes.PictureEncoder.encode", None)
        assert tokenize("--num-tokens", 8, output=self.REPO).code == 0
        assert "tokenization.json" in self.files(hub)

    def test_what_lacks_rows_is_not_pushed(self, tokenize, hub, tars):
        data, before = tars
        result = tokenize("--num-tokens", 4, data=[data], output=self.REPO)
        assert (result.code, result.out) == (1, "")
        assert "tester/codes was not pushed, as rows are missing; the others are in " in result.errors[-1]
        assert hub.messages(f"datasets/{self.REPO}") == []
        (data / "0.tar").write_bytes(before)
        assert tokenize("--num-tokens", 4, data=[data], output=self.REPO).code == 0
        assert hub.messages(f"datasets/{self.REPO}") == ["Tokens by alit tokenize"]

    def refused(self, tokenize, hub, message, *arguments):
        before = dict(hub.files(f"datasets/{self.REPO}")) if hub.repos else {}
        result = tokenize(*(arguments or ("--num-tokens", 8)), output=self.REPO)
        assert (result.code, result.out) == (2, "")
        assert message in result.err
        assert (dict(hub.files(f"datasets/{self.REPO}")) if hub.repos else {}) == before

    def test_tokens_of_another_run_are_not_mixed_or_replaced(self, tokenize, hub, monkeypatch, tmp_path):
        assert tokenize("--num-tokens", 8, output=self.REPO).code == 0
        # On another machine, say.
        monkeypatch.setenv("ALIT_HF_CACHE", str(tmp_path / "other-cache"))
        self.refused(tokenize, hub, "holds tokens of another run, num_tokens was 8 and is now 4", "--num-tokens", 4)

    def test_a_repository_of_something_else_is_left_alone(self, tokenize, hub):
        HfApi().create_repo(self.REPO, repo_type="dataset")
        HfApi().upload_file(
            path_or_fileobj=io.BytesIO(b"x"), path_in_repo="photos.parquet", repo_id=self.REPO, repo_type="dataset"
        )
        self.refused(tokenize, hub, "tester/codes holds something else already, photos.parquet")

    def test_a_namespace_of_somebody_else(self, tokenize, hub):
        result = tokenize("--num-tokens", 8, output="somebody/codes")
        assert (result.code, result.out) == (2, "")
        assert "the data set somebody/codes on the Hub cannot be used: " in result.err
        assert result.err.endswith("(for a folder write ./somebody/codes)\n")
        assert hub.repos == {}

    def test_a_token_that_may_only_read_is_refused_before_any_work(self, tokenize, hub, monkeypatch):
        hub.add(f"datasets/{self.REPO}", private=True)
        monkeypatch.setattr("alit_hf.codes.picture_codes.PictureEncoder.encode", None)
        monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
        self.refused(tokenize, hub, "this login may not write to tester/codes: use a token with write access to it")

    def test_without_a_login(self, tokenize, hub, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
        self.refused(
            tokenize,
            hub,
            "pushing to tester/codes needs a login: run `hf auth login`, or set HF_TOKEN (for a folder write "
            "./tester/codes)",
        )
