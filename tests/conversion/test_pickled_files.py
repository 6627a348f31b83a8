"""Objects of any class beside the weights of a file are neither needed nor run."""

import argparse
import collections
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from published_reference import TamingVQGAN, randomise

from alit_hf.conversion import load_original


@pytest.fixture(scope="module")
def weights():
    return randomise(TamingVQGAN([32, 64], 1, 8, 4, 20), torch.Generator().manual_seed(0)).state_dict()


@pytest.fixture
def lightning(monkeypatch):
    """Classes of a package that whoever reads the file does not have."""
    module = types.ModuleType("pytorch_lightning_stand_in")

    class ModelCheckpoint:
        """A key of `callbacks`."""

    class AttributeDict(dict):
        """A dict with more."""

    class Items(list):
        """A list with more."""

    class Slots:
        __slots__ = ("a",)

        def __init__(self):
            self.a = 1

    for kind in (ModelCheckpoint, AttributeDict, Items, Slots):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def assert_loads(path: Path, weights: dict):
    model = load_original(path)
    assert torch.equal(model.quantize.embedding.weight, weights["quantize.embedding.weight"])
    assert torch.equal(model.encoder.conv_out.bias, weights["encoder.conv_out.bias"])


@pytest.mark.parametrize(
    "make",
    [
        lambda package: {package.ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "path": "last.ckpt"}},
        lambda package: package.ModelCheckpoint(),
        lambda package: package.AttributeDict(learning_rate=1e-4),
        lambda package: package.Items([1, 2]),
        lambda package: package.Slots(),
        lambda package: collections.defaultdict(dict, {1: {}}),
        lambda package: {package.Slots(): 1},
        lambda package: {1, 2},
        lambda package: frozenset({1}),
        lambda package: np.float64(0.5),
        lambda package: np.arange(3),
        lambda package: Path("last.ckpt"),
        lambda package: argparse.Namespace(betas=(0.9, 0.95)),
        lambda package: torch.nn.Linear(2, 2),
        lambda package: torch.bfloat16,
        lambda package: 10**100,
    ],
)
def test_training_leaves_objects_of_many_kinds(make, lightning, weights, tmp_path, monkeypatch):
    torch.save({"state_dict": weights, "callbacks": make(lightning)}, tmp_path / "last.ckpt")
    monkeypatch.delitem(sys.modules, lightning.__name__)
    assert_loads(tmp_path / "last.ckpt", weights)


def test_parameters_and_shared_storages(weights, tmp_path):
    parameters = collections.OrderedDict((name, torch.nn.Parameter(weight)) for name, weight in weights.items())
    torch.save({"state_dict": parameters, "arguments": argparse.Namespace(), "again": weights}, tmp_path / "last.ckpt")
    assert_loads(tmp_path / "last.ckpt", weights)


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class TestNothingIsExecuted:
    @pytest.mark.parametrize("place", ["beside", "key", "weight", "whole"])
    @pytest.mark.parametrize(
        "call",
        [
            lambda path: Calls(os.mkdir, str(path)),
            lambda path: Calls(Path.touch, path),
            lambda path: Calls(eval, f"__import__('os').mkdir({str(path)!r})"),
            lambda path: Calls(getattr, Calls(__import__, "os"), "mkdir"),
        ],
        ids=["os", "touch", "eval", "getattr"],
    )
    def test_calls(self, call, place, weights, tmp_path):
        payload = call(tmp_path / "executed")
        contents = {
            "beside": {"state_dict": weights, "payload": payload},
            "key": {"state_dict": weights, "callbacks": {payload: 1}},
            "weight": {"state_dict": {**weights, "quantize.embedding.weight": payload}},
            "whole": payload,
        }
        torch.save(contents[place], tmp_path / "last.ckpt")
        if place in ("beside", "key"):
            assert_loads(tmp_path / "last.ckpt", weights)
        else:
            with pytest.raises(ValueError, match=r"it must be a|not a state dict|no weights|is a "):
                load_original(tmp_path / "last.ckpt")
        assert os.listdir(tmp_path) == ["last.ckpt"]

    def test_calls_on_what_a_call_gives(self, weights, tmp_path):
        # Protocol 2: os.system looked up by getattr, and the result called.
        code = (
            b"\x80\x02cbuiltins\ngetattr\ncposix\nsystem\nX\x08\x00\x00\x00__call__\x86R"
            b"X\x14\x00\x00\x00touch " + b"a" * 14 + b"\x85R."
        )
        self.replace_pickle(weights, tmp_path / "last.ckpt", code)
        with pytest.raises(ValueError, match="path_or_state_dict"):
            load_original(tmp_path / "last.ckpt")
        assert os.listdir(tmp_path) == ["last.ckpt"]

    def test_a_pickle_cannot_change_what_reads_it(self, weights, tmp_path):
        """State that a pickle gives to a function would stay there for the next file."""
        function = torch._utils._rebuild_tensor_v2
        before = (function.__defaults__, dict(function.__dict__))
        attributes = pickle.dumps((None, {"__defaults__": (), "changed": 1}), protocol=2)[2:-1]
        foreign = b"cno_such_module\nThing\n"  # so that torch leaves the file to us
        code = b"\x80\x02" + foreign + b"ctorch._utils\n_rebuild_tensor_v2\n" + attributes + b"b."
        self.replace_pickle(weights, tmp_path / "last.ckpt", code)
        with pytest.raises(ValueError, match="path_or_state_dict"):
            load_original(tmp_path / "last.ckpt")
        assert (function.__defaults__, function.__dict__) == before

    def test_programs_are_refused(self, tmp_path):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
        with pytest.raises(ValueError, match=r"cannot be read as weights: .*torchscript"):
            load_original(tmp_path / "program.pt")

    def test_files_of_older_versions_of_torch(self, weights, tmp_path):
        path = tmp_path / "old.ckpt"
        torch.save(weights, path, _use_new_zipfile_serialization=False)
        assert_loads(path, weights)
        payload = Calls(os.mkdir, str(tmp_path / "executed"))
        torch.save({"state_dict": weights, "payload": payload}, path, _use_new_zipfile_serialization=False)
        with pytest.raises(ValueError, match="cannot be read as weights"):
            load_original(path)
        assert os.listdir(tmp_path) == ["old.ckpt"]

    @staticmethod
    def replace_pickle(weights: dict, path: Path, code: bytes) -> None:
        torch.save({"state_dict": weights}, path)
        with zipfile.ZipFile(path) as honest:
            contents = {name: honest.read(name) for name in honest.namelist()}
        with zipfile.ZipFile(path, "w") as hostile:
            for name, content in contents.items():
                hostile.writestr(name, code if name.endswith("data.pkl") else content)
