"""`alit explore`: the figure and the table of a picture at every length."""

import pytest
import torch
from PIL import Image
from tiny_model import save_tiny_model

from alit_hf.model.image_io import open_image


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()[1:] if "dB" in line]


def test_table_has_every_length_and_marks_the_one_that_encode_picks(alit, photos, tmp_path, tiny_model, loaded):
    model, processor = loaded
    figure = tmp_path / "new" / "figure.png"
    pixel_values = processor(open_image(photos / "b.webp"), return_tensors="pt").pixel_values
    with torch.no_grad():
        l1 = [model.encode(pixel_values, num_tokens=n, return_reconstruction=True) for n in (4, 8, 12)]
    l1 = [(code.reconstruction - pixel_values).abs().mean().item() for code in l1]
    best = l1.index(min(l1))
    for threshold, picked in [(max(l1) + 0.01, 0), (min(l1) - 0.01, 2), (min(l1) * (1 + 1e-6), best)]:
        arguments = ["-o", figure, "--threshold", threshold, "--model", tiny_model]
        result = alit("explore", photos / "b.webp", *arguments)
        assert (result.code, result.err) == (0, "")
        table = rows(result.out)
        assert [row[:2] for row in table] == [["4", "3"], ["8", "6"], ["12", "9"]]
        assert [float(row[2]) for row in table] == pytest.approx(l1, abs=1e-4)
        assert [row[-1] == "picked" for row in table] == [index == picked for index in range(3)]
        assert ("no length" in result.out) == (min(l1) >= threshold)
        with Image.open(figure) as picture:
            assert picture.width > 600


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".jpg", ".webp"])
def test_same_command_gives_same_file(alit, photos, tmp_path, tiny_model, suffix):
    for name in ("one", "two"):
        result = alit("explore", photos / "a.png", "-o", tmp_path / (name + suffix), "--model", tiny_model)
        assert result.code == 0
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_continuous_latents_have_no_bytes(alit, photos, tmp_path):
    model = save_tiny_model(tmp_path / "model", quantize=False)
    result = alit("explore", photos / "a.png", "-o", tmp_path / "x.png", "--model", model)
    assert (result.code, result.err) == (0, "")
    assert [row[1] for row in rows(result.out)] == ["-", "-", "-"]


def test_strange_file_names_are_words_not_formulas(alit, photos, tmp_path, tiny_model):
    name = "$x^{ \\frac 日本.png"
    (photos / "a.png").rename(photos / name)
    result = alit("explore", photos / name, "-o", tmp_path / "x.png", "--model", tiny_model)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("image", "output", "code", "message"),
    [
        ("missing.png", "x.png", 2, "missing.png does not exist"),
        (".", "x.png", 2, "is a folder, it must be a picture"),
        ("a.png", "x.txt", 2, "x.txt must end in .png"),
        ("a.png", "x", 2, "x must end in .png"),
        ("a.png", "a.png", 2, "a.png would be overwritten"),
        ("a.png", "hard.png", 2, "a.png would be overwritten"),
        ("a.png", "b.webp/x.png", 2, "b.webp is not a folder"),
        ("broken.png", "x.png", 1, "broken.png is not a picture"),
    ],
)
def test_errors(alit, photos, tiny_model, monkeypatch, image, output, code, message):
    monkeypatch.chdir(photos)
    (photos / "broken.png").write_bytes(b"broken")
    (photos / "hard.png").hardlink_to(photos / "a.png")
    result = alit("explore", image, "-o", output, "--model", tiny_model)
    assert (result.code, result.out, len(result.err.splitlines())) == (code, "", 1)
    assert message in result.err
