"""A packaged checkpoint is all that the folder has, and what its calibration is of is not rounded."""

import torch
from tiny_model import save_tiny_model

from alit_hf import ALITModel
from tools.package_checkpoint import package


def test_nothing_stays_of_the_checkpoint_before(tmp_path):
    source, target = save_tiny_model(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "notes.txt"):
        (target / name).write_text("old")
    num_bytes = package(str(source), target)
    names = {path.name for path in target.iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert num_bytes == sum(path.stat().st_size for path in target.iterdir())
    before, after = (ALITModel.from_pretrained(folder).state_dict() for folder in (source, target))
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    for name, tensor in before.items():
        rounded = tensor.half().float() if tensor.is_floating_point() else tensor
        torch.testing.assert_close(after[name], rounded, rtol=0, atol=0)


def test_a_length_predictor_is_not_rounded(tmp_path):
    model = ALITModel.from_pretrained(save_tiny_model(tmp_path / "source"))
    model.set_length_criterion("l1")
    model.save_pretrained(tmp_path / "predicting")
    (tmp_path / "target").mkdir()
    package(str(tmp_path / "predicting"), tmp_path / "target")
    before, after = (ALITModel.from_pretrained(tmp_path / name).length_predictor for name in ("predicting", "target"))
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name
