"""The tool that counts codes that depend on batch mates: it finds none, and it would."""

import pytest
import torch
from tiny_model import save_tiny_model
from token_data import BROKEN, write_parquet

from alit_hf.model import selection
from tools import compare_batches


@pytest.fixture
def data(tmp_path) -> str:
    path = tmp_path / "data.parquet"
    write_parquet(path, [number for number in range(8) if number != BROKEN])
    return str(path)


def table(data, tmp_path, capsys) -> list[list[str]]:
    """Batch size, other codes and other lengths of each line."""
    model = save_tiny_model(tmp_path / "model")
    compare_batches.main([data, "--model", model])
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "7 pictures, l1"
    return [line.split()[:3] for line in lines]


def test_no_code_depends_on_batch_mates(data, tmp_path, capsys):
    assert table(data, tmp_path, capsys) == [[size, "0", "0"] for size in ("1", "2", "7", "16")]


def test_scores_that_depend_on_batch_mates_are_found(data, tmp_path, capsys, monkeypatch):
    def l1(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        return selection.l1(reconstruction, original) * (1 + 1e-6 * len(original))

    monkeypatch.setitem(selection._FACTORIES, "l1", lambda: l1)
    alone, *batches = table(data, tmp_path, capsys)
    assert alone == ["1", "0", "0"]
    assert all(int(other_codes) > 0 for _, other_codes, _ in batches)
