"""Functions that wait for a module run once, and never while a module that they may import is half imported."""

import importlib
import sys

import pytest

from alit_hf.utils.after_import import AfterImport


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`outer_package.outer` imports `outer_package.inner` before it has said what it holds."""
    folder = tmp_path / "outer_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "inner.py").write_text("value = 1\n")
    (folder / "outer.py").write_text("from .inner import value\nholds = value\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "outer_package"
    for name in [name for name in sys.modules if name.startswith("outer_package")]:
        del sys.modules[name]


def test_waits_for_the_outermost_import(package):
    found = []

    def look():
        from outer_package.outer import holds

        found.append(holds)

    AfterImport([package], {f"{package}.inner": look}).install()
    importlib.import_module(package)
    assert found == []
    importlib.import_module(f"{package}.outer")
    assert found == [1]
    importlib.import_module(f"{package}.inner")
    assert found == [1]


def test_a_module_that_is_there_is_not_waited_for(package):
    importlib.import_module(f"{package}.inner")
    found = []
    AfterImport([package], {f"{package}.inner": lambda: found.append(1)}).install()
    assert found == [1]


def test_a_failure_is_raised_and_tried_again(package):
    attempts = []

    def fail_once():
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("not yet")

    AfterImport([package], {f"{package}.inner": fail_once}).install()
    with pytest.raises(OSError, match="not yet"):
        importlib.import_module(f"{package}.inner")
    importlib.import_module(f"{package}.outer")
    assert len(attempts) == 2


def test_modules_keep_their_own_loader(package):
    AfterImport([package], {f"{package}.inner": lambda: None}).install()
    module = importlib.import_module(f"{package}.inner")
    assert type(module.__loader__) is type(module.__spec__.loader) is type(importlib.import_module("json").__loader__)
