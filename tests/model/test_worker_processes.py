"""Encoding in forked workers of a process that has encoded before, as docs/tokenizing.md tells."""

import subprocess
import sys

from tiny_model import save_tiny_model


SCRIPT = """
import sys

import datasets
import torch
from alit_hf import ALITModel

torch.set_num_threads(2)
model = ALITModel.from_pretrained(sys.argv[1]).eval()


def tokens(rows):
    {setting}
    with torch.no_grad():
        return {{"ids": model.encode(rows["pixel_values"], num_tokens=8).token_ids}}


rows = datasets.Dataset.from_dict({{"pixel_values": torch.rand(8, 3, 32, 32).tolist()}}).with_format("torch")
expected = torch.cat([tokens(rows[first : first + 2])["ids"] for first in range(0, 8, 2)])
torch.set_num_threads(2)
model.encode(torch.rand(4, 3, 32, 32), num_tokens=8)
found = rows.map(tokens, batched=True, batch_size=2, num_proc=2, new_fingerprint="ids")["ids"][:]
assert torch.equal(torch.as_tensor(found), expected)
"""


def run(folder, setting: str, timeout: float) -> None:
    command = [sys.executable, "-c", SCRIPT.format(setting=setting), folder]
    subprocess.run(command, check=True, timeout=timeout, capture_output=True)


def test_the_documented_setting_lets_forked_workers_encode(tmp_path):
    run(save_tiny_model(tmp_path), "torch.set_num_threads(1)", timeout=100)
