from pathlib import Path

import pytest
import torch

from alit_hf import ALITModel
from training.engine.monitoring import Display
from training.train import main


CONFIG = Path(__file__).parents[2] / "training" / "configs" / "smoke.yaml"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_smoke_run_passes_all_stages_and_lowers_each_loss(tmp_path, monkeypatch):
    losses: dict[str, list[float]] = {}
    validation: dict[str, dict[str, float]] = {}
    original = Display.__init__

    def __init__(self, accelerator, title, *arguments):
        original(self, accelerator, title, *arguments)
        self.title = title

    def scalars(self, values, step):
        if "loss" in values:
            losses.setdefault(self.title, []).append(values["loss"])
        else:
            validation[self.title] = values

    monkeypatch.setattr(Display, "__init__", __init__)
    monkeypatch.setattr(Display, "scalars", scalars)
    assert main(["--config", str(CONFIG), "--output_dir", str(tmp_path)]) == 0
    assert list(losses) == ["base", "distill", "finetune"]
    for name, least_fall in (("base", 0.4), ("distill", 0.05)):
        first, last = losses[name][0], losses[name][-1]
        assert last < (1 - least_fall) * first, name
    # The first ten steps, which are logged together, lower the pixels' loss most. What comes before them:
    before, after = validation["distill"], validation["finetune"]
    for name in (f"validation/l1/{length}" for length in (8, 16, 24, 32)):
        assert after[name] < 0.95 * before[name], name
    model = ALITModel.from_pretrained(tmp_path / "finetune" / "model").eval()
    with torch.no_grad():
        code = model.encode(torch.rand(1, 3, 64, 64), num_tokens=16)
    assert code.token_ids.shape == (1, 16)
