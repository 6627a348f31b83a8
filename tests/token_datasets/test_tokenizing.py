"""Every picture gets the row that it gets alone, whatever ends the run on the way and however many share it."""

import json
import os
import shutil
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow.parquet as pq
import pytest
from lively_model import lively_model
from tar_data import cut, member_ends, samples, write_tar
from thread_processes import in_processes
from token_data import BROKEN, FEATURES, NUM_ROWS, contents, png, row, undecoded, write_parquet

from alit_hf.codes.length_choice import LengthChoice
from alit_hf.codes.picture_codes import PictureEncoder
from alit_hf.data.image_rows import open_rows
from alit_hf.token_datasets import shards as shards_module
from alit_hf.token_datasets import tokenizing
from alit_hf.token_datasets.tokenizing import TOKEN_FEATURES, OutputError
from alit_hf.utils import whole_file
from alit_hf.utils.processes import Processes
from alit_hf.utils.sole_use import LOCK_FILE


NUMBERS = [number for number in range(sum(NUM_ROWS)) if number != BROKEN]


def load(folder, split="train") -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split=split, cache_dir=str(folder.parent / "cache"))


def test_rows_are_those_of_the_data_with_the_code_that_each_picture_gets_alone(
    tokenize, tmp_path, model, choice, pictures
):
    summary = tokenize(tmp_path / "out")
    loaded = load(tmp_path / "out")
    others = {name: feature for name, feature in FEATURES.items() if name != "image"}
    assert loaded.features == {"file_name": datasets.Value("string"), **others, **TOKEN_FEATURES}
    encoder = PictureEncoder(model, choice)
    for number, got in zip(NUMBERS, undecoded(loaded), strict=True):
        code = encoder.encode([pictures[number]])[0]
        expected = row(number)
        del expected["image"]
        assert got == {
            "file_name": f"{number}.png",
            **expected,
            "token_ids": code.tokens.token_ids.tolist(),
            "num_tokens": code.tokens.num_tokens,
            "score": pytest.approx(code.score, abs=1e-6),
            "original_size": list(code.tokens.original_size),
        }
    assert summary.lengths == {length: loaded["num_tokens"][:].count(length) for length in summary.lengths}
    assert len(summary.lengths) > 1
    assert (summary.num_images, summary.num_undecodable) == (len(NUMBERS), 1)
    assert summary.num_tokens == sum(loaded["num_tokens"])
    assert summary.num_unsatisfied == sum(not score < choice.threshold for score in loaded["score"]) > 0


def test_undecodable_pictures_are_listed(tokenize, tmp_path):
    tokenize(tmp_path / "out")
    lines = (tmp_path / "out" / "undecodable.jsonl").read_text().splitlines()
    reason = "<10 bytes> is not a picture in a format that can be read"
    assert [json.loads(line) for line in lines] == [
        {"part": 0, "row": BROKEN, "file_name": f"{BROKEN}.png", "reason": reason}
    ]


def test_a_fixed_length_has_no_score(tokenize, tmp_path):
    summary = tokenize(tmp_path / "out", choice=LengthChoice(num_tokens=8))
    loaded = load(tmp_path / "out")
    assert set(loaded["num_tokens"]) == {8}
    assert set(loaded["score"]) == {None}
    assert (summary.lengths, summary.num_unsatisfied) == ({8: len(NUMBERS)}, 0)


@pytest.mark.parametrize(
    ("rows_per_shard", "blocks"), [(1, [7, 4]), (2, [4, 2]), (4, [2, 1]), (7, [1, 1]), (100, [1, 1])]
)
def test_shards_have_so_many_rows_and_none_is_empty(tokenize, tmp_path, rows_per_shard, blocks):
    tokenize(tmp_path / "out", rows_per_shard=rows_per_shard, batch_size=3)
    names = [f"train-{part:05d}-{block:05d}.parquet" for part in (0, 1) for block in range(blocks[part])]
    assert sorted(path.name for path in (tmp_path / "out" / "data").iterdir()) == names
    assert [int(name.split(".")[0]) for name in load(tmp_path / "out")["file_name"]] == NUMBERS


def test_shards_of_broken_pictures_only_and_parts_without_rows(tokenize, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, numbers in (("0", [0]), ("1", []), ("2", [BROKEN, BROKEN])):
        write_parquet(data / f"{name}.parquet", numbers)
    summary = tokenize(tmp_path / "out", rows=open_rows([str(data)]))
    assert (summary.num_images, summary.num_undecodable) == (1, 2)
    assert load(tmp_path / "out")["file_name"][:] == ["0.png"]
    before = contents(tmp_path / "out")
    tokenize(tmp_path / "out", rows=open_rows([str(data)]))
    assert contents(tmp_path / "out") == before


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def kill_at(monkeypatch, number: int, after: bool) -> None:
    """Ends the run at its `number`th file, before or after the file gets its name."""
    count = 0

    def replace(source, target):
        nonlocal count
        count += 1
        if count == number:
            if after:
                os.replace(source, target)
            else:
                # A killed process removes nothing, and the next one has another number.
                os.truncate(source, os.path.getsize(source) // 2)
                shutil.copy(source, Path(source).with_name(Path(source).name.replace(str(os.getpid()), "1")))
            raise Killed
        os.replace(source, target)

    killing = SimpleNamespace(**{**vars(os), "replace": replace})
    monkeypatch.setattr(whole_file, "os", killing)


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_file_nothing_is_lost_or_doubled(tokenize, tmp_path, monkeypatch, after):
    tokenize(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    for number in range(1, len(whole) + 1):
        out = tmp_path / str(number)
        with monkeypatch.context() as patched:
            kill_at(patched, number, after)
            with pytest.raises(Killed):
                tokenize(out)
        tokenize(out)
        assert contents(out) == whole


def test_killed_again_and_again(tokenize, tmp_path, monkeypatch):
    tokenize(tmp_path / "whole")
    for number in (1, 2, 1, 3, 2, 2):
        with monkeypatch.context() as patched:
            kill_at(patched, number, after=False)
            with pytest.raises(Killed):
                tokenize(tmp_path / "out")
    tokenize(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_is_there_is_not_made_again(tokenize, tmp_path, monkeypatch):
    tokenize(tmp_path / "out")
    whole = contents(tmp_path / "out")
    # A gap, as several processes leave it.
    (tmp_path / "out" / "data" / "train-00000-00001.parquet").unlink()
    encoded = []
    encode = PictureEncoder.encode

    def count(self, pictures):
        encoded.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(PictureEncoder, "encode", count)
    tokenize(tmp_path / "out")
    # Rows 3, 4 and the broken 5.
    assert sum(encoded) == 2
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("count", [2, 3])
def test_processes_make_together_what_one_makes(tokenize, tmp_path, count):
    tokenize(tmp_path / "one")
    summaries = in_processes(count, lambda processes: tokenize(tmp_path / "out", processes=processes))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert [summary is None for summary in summaries] == [False] + [True] * (count - 1)


@pytest.mark.parametrize(("count", "parts"), [(2, 2), (3, 2), (2, 1)])
def test_no_shard_is_made_twice_and_none_by_one_process_alone(tokenize, tmp_path, monkeypatch, count, parts):
    written, ranks = [], {}
    write = shards_module.Shards.write

    def note(self, table, record):
        written.append((record.part, record.block))
        ranks.setdefault(threading.get_ident(), []).append(record.block)
        write(self, table, record)

    monkeypatch.setattr(shards_module.Shards, "write", note)
    sources = [str(path) for path in sorted(tokenize.data.iterdir())[:parts]]
    in_processes(count, lambda processes: tokenize(tmp_path / "out", rows=open_rows(sources), processes=processes))
    assert len(written) == len(set(written)) == {2: 5, 1: 3}[parts]
    assert len(ranks) == count


def test_another_number_of_processes_goes_on(tokenize, tmp_path):
    tokenize(tmp_path / "whole")
    tokenize(tmp_path / "out")
    for name in ("00000-00000", "00000-00002", "00001-00001"):
        (tmp_path / "out" / "data" / f"train-{name}.parquet").unlink()
    in_processes(3, lambda processes: tokenize(tmp_path / "out", processes=processes))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_second_run_in_the_same_folder_is_refused_and_disturbs_nothing(tokenize, tmp_path, monkeypatch):
    tokenize(tmp_path / "whole")
    out = tmp_path / "out"
    refused = []
    original = tokenizing._Run.work

    def work(run, done):
        unfinished = out / "data" / ".alit-1-shard.parquet"
        unfinished.touch()
        for processes in (None, Processes(0, 2)):
            with pytest.raises(OutputError, match=f"another run is writing to {out}") as error:
                tokenize(out, processes=processes)
            refused.append(error)
        assert unfinished.exists()
        unfinished.unlink()
        original(run, done)

    monkeypatch.setattr(tokenizing._Run, "work", work)
    tokenize(out)
    assert len(refused) == 2
    assert contents(out) == contents(tmp_path / "whole")
    monkeypatch.setattr(tokenizing._Run, "work", original)
    assert tokenize(out).was_complete


def test_a_folder_where_a_run_was_killed_at_its_very_start_can_be_used(tokenize, tmp_path):
    (tmp_path / LOCK_FILE).touch()
    assert not tokenize(tmp_path).was_complete
    assert not (tmp_path / LOCK_FILE).exists()


def test_all_processes_hear_of_an_output_that_cannot_be_used(tokenize, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    heard = []

    def work(processes: Processes) -> None:
        with pytest.raises(OutputError, match=r"not empty and holds no tokenization\.json, but notes\.txt"):
            tokenize(tmp_path, processes=processes)
        heard.append(processes.rank)

    in_processes(2, work)
    assert sorted(heard) == [0, 1]
    assert set(contents(tmp_path)) == {"notes.txt"}


class TestDamagedFiles:
    @pytest.fixture
    def data(self, tmp_path):
        """Three tars, of which the second breaks off in its sixth sample."""
        (tmp_path / "data").mkdir()
        for number in range(3):
            write_tar(tmp_path / "data" / f"{number}.tar", samples(range(10 * number, 10 * number + 8)))
        self.whole = (tmp_path / "data" / "1.tar").read_bytes()
        cut(tmp_path / "data" / "1.tar", member_ends(tmp_path / "data" / "1.tar")[10] + 600)
        return tmp_path / "data"

    def names(self, out) -> list[str]:
        return datasets.Dataset.from_parquet([str(path) for path in sorted(out.glob("data/*"))])["file_name"][:]

    def test_whole_rows_are_kept_and_the_file_is_listed(self, tokenize, tmp_path, data):
        summary = tokenize(tmp_path / "out", rows=open_rows([str(data)]))
        expected = [*range(8), *range(10, 15), *range(20, 28)]
        assert self.names(tmp_path / "out") == [f"{number:02d}.png" for number in expected]
        assert (summary.num_images, summary.num_undecodable) == (21, 0)
        (damage,) = summary.damage
        assert damage.startswith("1.tar is damaged, what is behind its first 5 rows cannot be read: unexpected end")
        lines = (tmp_path / "out" / "undecodable.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{"part": 1, "row": 5, "file_name": "1.tar", "reason": damage}]
        assert damage in (tmp_path / "out" / "README.md").read_text()

    def test_the_same_call_again_changes_nothing(self, tokenize, tmp_path, data):
        first = tokenize(tmp_path / "out", rows=open_rows([str(data)]))
        before = contents(tmp_path / "out")
        again = tokenize(tmp_path / "out", rows=open_rows([str(data)]))
        assert (again.was_complete, again.damage) == (True, first.damage)
        assert contents(tmp_path / "out") == before

    @pytest.mark.parametrize("count", [1, 2])
    def test_a_repaired_file_alone_is_tokenized_again(self, tokenize, tmp_path, data, count):
        in_processes(
            count, lambda processes: tokenize(tmp_path / "out", rows=open_rows([str(data)]), processes=processes)
        )
        others = {path: path.stat().st_ino for path in tmp_path.glob("out/data/train-0000[02]-*")}
        (data / "1.tar").write_bytes(self.whole)
        repaired = open_rows([str(data)])
        in_processes(count, lambda processes: tokenize(tmp_path / "out", rows=repaired, processes=processes))
        assert len(others) == 6
        assert {path: path.stat().st_ino for path in others} == others
        tokenize(tmp_path / "whole", rows=repaired)
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_a_repaired_file_keeps_the_columns_that_were_chosen(self, tokenize, tmp_path, data):
        def rows(*columns: str):
            return open_rows([str(data)], columns=columns)

        tokenize(tmp_path / "out", rows=rows("cls"))
        (data / "1.tar").write_bytes(self.whole)
        before = contents(tmp_path / "out")
        with pytest.raises(OutputError, match=r"kept_columns was \['cls'\] and is now \['__key__'\]"):
            tokenize(tmp_path / "out", rows=rows("__key__"))
        assert contents(tmp_path / "out") == before
        tokenize(tmp_path / "out", rows=rows("cls"))
        tokenize(tmp_path / "whole", rows=rows("cls"))
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        (shard, *_) = sorted(tmp_path.glob("out/data/train-00001-*"))
        assert pq.read_table(shard).column_names[:3] == ["file_name", "cls", "token_ids"]

    @pytest.mark.parametrize("number", [1, 3, 4, 7, 9])
    def test_killed_after_the_repair_nothing_is_lost_or_doubled(self, tokenize, tmp_path, data, monkeypatch, number):
        tokenize(tmp_path / "out", rows=open_rows([str(data)]))
        (data / "1.tar").write_bytes(self.whole)
        rows = open_rows([str(data)])
        changes = 0

        def counted(change):
            def killing(*args, **kwargs):
                nonlocal changes
                changes += 1
                if changes == number:
                    raise Killed
                return change(*args, **kwargs)

            return killing

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", counted(Path.unlink))
            patched.setattr(whole_file, "os", SimpleNamespace(**{**vars(os), "replace": counted(os.replace)}))
            with pytest.raises(Killed):
                tokenize(tmp_path / "out", rows=rows)
        assert number <= 3 or not (tmp_path / "out" / "README.md").exists()
        tokenize(tmp_path / "out", rows=rows)
        tokenize(tmp_path / "whole", rows=rows)
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_a_file_that_was_whole_must_stay_as_it_is(self, tokenize, tmp_path, data):
        tokenize(tmp_path / "out", rows=open_rows([str(data)]))
        (data / "1.tar").write_bytes(self.whole)
        write_tar(data / "2.tar", samples(range(30, 33)))
        before = contents(tmp_path / "out")
        with pytest.raises(OutputError, match="data_fingerprint was"):
            tokenize(tmp_path / "out", rows=open_rows([str(data)]))
        assert contents(tmp_path / "out") == before

    def test_parquet_files(self, tokenize, tmp_path, parquet):
        shutil.copytree(parquet, tmp_path / "data")
        cut(tmp_path / "data" / "0.parquet", 500)
        summary = tokenize(tmp_path / "out", rows=open_rows([str(tmp_path / "data")]))
        assert load(tmp_path / "out")["file_name"][:] == [f"{number}.png" for number in range(7, 11)]
        assert summary.damage[0].startswith("0.parquet is damaged, no row of it can be read")
        shutil.copy(parquet / "0.parquet", tmp_path / "data")
        tokenize(tmp_path / "out", rows=open_rows([str(tmp_path / "data")]))
        tokenize(tmp_path / "whole")
        for name, content in contents(tmp_path / "whole").items():
            if name.endswith("parquet"):
                table, expected = (pq.read_table(tmp_path / out / name) for out in ("out", "whole"))
                assert table.equals(expected)
            assert content


class TestRefusals:
    @pytest.fixture
    def out(self, tokenize, tmp_path):
        tokenize(tmp_path / "out")
        return tmp_path / "out"

    def refused(self, tokenize, out, match, **arguments):
        before = contents(out)
        with pytest.raises(OutputError, match=match):
            tokenize(out, **arguments)
        assert contents(out) == before

    def test_another_threshold(self, tokenize, out):
        self.refused(tokenize, out, r"threshold was 0\.\d+ and is now 0\.5: ", choice=LengthChoice(threshold=0.5))

    def test_another_model(self, tokenize, out, model):
        other = lively_model()
        other.decoder.head.fc2.bias.data += 0.1
        self.refused(tokenize, out, r"fingerprint was '\w{16}' and is now '\w{16}'", model=other)

    def test_another_size_of_shards(self, tokenize, out):
        self.refused(tokenize, out, "rows_per_shard was 3 and is now 4", rows_per_shard=4)

    def test_other_data(self, tokenize, out):
        only = open_rows([str(tokenize.data / "0.parquet")])
        self.refused(tokenize, out, "data_fingerprint was", rows=only)

    def test_data_that_changed(self, tokenize, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.png").write_bytes(png(1))
        tokenize(tmp_path / "out", rows=open_rows([str(tmp_path / "photos")]))
        (tmp_path / "photos" / "a.png").write_bytes(png(2))
        rows = open_rows([str(tmp_path / "photos")])
        self.refused(tokenize, tmp_path / "out", "data_fingerprint was", rows=rows)

    def test_an_information_that_is_none(self, tokenize, out):
        (out / "tokenization.json").write_text('{"model": "m"}')
        self.refused(tokenize, out, r"tokenization\.json was not written by `alit tokenize`")

    def test_columns_that_the_tokens_need(self, tokenize, tmp_path):
        datasets.Dataset.from_dict({"image": [png(1)], "score": [1.0]}).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(OutputError, match="the data have the columns score, which the tokens need"):
            tokenize(tmp_path / "out", rows=open_rows([str(tmp_path / "a.parquet")]))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 50), lambda path: path.write_bytes(b"")])
    def test_a_shard_that_was_altered(self, tokenize, out, damage):
        path = out / "data" / "train-00000-00001.parquet"
        damage(path)
        with pytest.raises(ValueError, match=r"train-00000-00001\.parquet is no shard"):
            tokenize(out)

    def test_shards_that_changed_places(self, tokenize, out):
        data = out / "data"
        os.replace(data / "train-00000-00000.parquet", data / "train-00000-00001.parquet")
        with pytest.raises(ValueError, match=r"00001\.parquet holds the rows of train-00000-00000\.parquet"):
            tokenize(out)


def test_a_connection_that_fails_ends_the_run_and_is_no_undecodable_picture(tokenize, tmp_path, monkeypatch):
    def fail(cell):
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patched:
        patched.setattr(tokenizing, "fetch", fail)
        with pytest.raises(ConnectionError):
            tokenize(tmp_path / "out")
    summary = tokenize(tmp_path / "out")
    assert (summary.num_images, summary.num_undecodable) == (len(NUMBERS), 1)


def test_threads_change_nothing(tokenize, tmp_path):
    tokenize(tmp_path / "none", num_workers=0)
    for num_workers in (1, 5):
        tokenize(tmp_path / str(num_workers), num_workers=num_workers)
        assert contents(tmp_path / str(num_workers)) == contents(tmp_path / "none")


def test_pictures_are_decoded_while_the_model_computes_and_only_so_many(tokenize, tmp_path, monkeypatch):
    """The model waits for the next batch, of another file, and the pictures of 300 rows are never all there."""
    data = tmp_path / "data"
    data.mkdir()
    write_parquet(data / "0.parquet", [0, 1, 2])
    write_parquet(data / "1.parquet", [number % 5 for number in range(297)])
    batch_size, num_workers, num_alive, most_alive, num_decoded = 3, 2, 0, 0, 0
    lock, ahead = threading.Lock(), threading.Event()

    def free():
        nonlocal num_alive
        with lock:
            num_alive -= 1

    def to_picture(image, processor):
        nonlocal num_alive, most_alive, num_decoded
        picture = original(image, processor)
        weakref.finalize(picture.pixel_values, free)
        with lock:
            num_alive, num_decoded = num_alive + 1, num_decoded + 1
            most_alive = max(most_alive, num_alive)
            if num_decoded == 2 * batch_size:
                ahead.set()
        return picture

    def encode(encoder, pictures):
        assert ahead.wait(timeout=30)
        return original_encode(encoder, pictures)

    original, original_encode = tokenizing.to_picture, PictureEncoder.encode
    monkeypatch.setattr(tokenizing, "to_picture", to_picture)
    monkeypatch.setattr(PictureEncoder, "encode", encode)
    summary = tokenize(
        tmp_path / "out",
        rows=open_rows([str(data)]),
        choice=LengthChoice(num_tokens=4),
        batch_size=batch_size,
        num_workers=num_workers,
        rows_per_shard=100,
    )
    assert summary.num_images == num_decoded == 300
    # The last batch, the one that is put together, and what waits for it.
    assert 2 * batch_size <= most_alive <= 3 * batch_size + num_workers + 1
    assert num_alive == 0


def test_rows_that_cannot_be_read_end_the_run_after_the_shards_before_them(tokenize, tmp_path, monkeypatch):
    tables = open_rows([str(tokenize.data)]).tables

    def failing(part, row, batch_size):
        yield from (table for table, _ in zip(tables(part, row, batch_size), range(2), strict=False))
        raise ConnectionError("no route to host")

    rows = open_rows([str(tokenize.data)])
    monkeypatch.setattr(type(rows), "tables", lambda self, *arguments: failing(*arguments))
    with pytest.raises(ConnectionError):
        tokenize(tmp_path / "out", rows=rows, rows_per_shard=2, batch_size=2)
    # Of two batches, the second may be the part's last one.
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["train-00000-00000.parquet"]
