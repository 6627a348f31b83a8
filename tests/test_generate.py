"""`examples/generate.py`: from a data set of tokens to pictures that a language model has written."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_model import save_tiny_model
from token_data import write_parquet

from alit_hf.cli import main as alit
from alit_hf.codes.figure import draw_panels


SCRIPT = Path(__file__).parents[1] / "examples" / "generate.py"
SMALL = ("--hidden-size", 16, "--num-layers", 1, "--epochs", 2, "--device", "cpu")


@pytest.fixture
def generate(monkeypatch, tmp_path):
    """Runs the script in this process, on ten codes of 8 ids of a tiny model that has lengths of 4, 8 and 12."""
    model, data, tokens = save_tiny_model(tmp_path / "model"), tmp_path / "data.parquet", tmp_path / "tokens"
    write_parquet(data, range(6, 16))
    command = ["tokenize", data, "--output", tokens, "--model", model, "--num-tokens", 8]
    assert alit(list(map(str, command))) == 0
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", list(map(str, [SCRIPT, tokens, "--model", model, *SMALL, *arguments])))
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_pictures_of_both_kinds_of_length(generate, tmp_path, capsys):
    generate("-o", tmp_path / "new" / "out.png", "--num-tokens", 4, 12, "--samples", 20)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tokens", "data", "model"]
    shares = {int(n): (data, model) for n, data, model in map(str.split, lines[1:-1])}
    assert shares[8][0] == "100.0%"
    assert sum(float(model.rstrip("%")) for _, model in shares.values()) == pytest.approx(100)
    assert re.fullmatch(r"total variation distance of 20 samples: [01]\.\d{3}", lines[-1])
    with Image.open(tmp_path / "new" / "out.png") as figure:
        assert figure.width > 2 * figure.height > 0


@pytest.fixture
def drawn(monkeypatch) -> list[list[tuple[str, list[str]]]]:
    """Title and lines of each picture of the figure, row by row."""
    drawn = []

    def draw(rows, caption):
        drawn.extend([(panel.title, panel.lines) for panel in row] for row in rows)
        return draw_panels(rows, caption)

    monkeypatch.setattr("alit_hf.codes.figure.draw_panels", draw)
    return drawn


def test_pictures_of_classes(generate, tmp_path, drawn):
    labels = ("--label-column", "label", "--labels", "dog", "cat")
    generate("-o", tmp_path / "out.png", "--samples", 4, *labels, "--num-tokens", 12, 4)
    chosen, *asked = drawn
    assert {title for title, _ in chosen} <= {"4 tokens", "8 tokens", "12 tokens"}
    assert [lines for _, lines in chosen] == [["dog"], ["cat"]] * 4
    assert asked == [[(f"{num_tokens} tokens", lines) for _, lines in chosen] for num_tokens in (12, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tokens", 5], "`num_tokens` is 5, it must be a multiple of 4 between 4 and 12"),
        (["--label-column", "kind"], "--label-column is 'kind', it must be one of"),
        (["--label-column", "label", "--labels", "cow"], "--labels has ['cow'], the classes are ['cat', 'dog']"),
        (["-o", "out.txt"], "out.txt is no file name of a figure"),
        (["-o", f"{SCRIPT}/out.png"], "File exists"),
        (["-o", "folder.png"], "folder.png cannot be written"),
        (["--samples", 0], "it must be a whole number from 1"),
        (["--hidden-size", 17], "--hidden-size is 17, it must be a multiple of 8"),
        (["--device", "foo"], "foo"),
    ],
)
def test_what_cannot_be_is_said_before_training(generate, monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", lambda *args, **kwargs: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as ended:
        generate("-o", "out.png", *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
