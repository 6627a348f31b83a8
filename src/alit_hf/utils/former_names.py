"""Moved modules, importable under their former names."""

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType


class FormerNames(MetaPathFinder):
    """
    Finds modules by former names: `import FORMER` returns the module itself, with a `DeprecationWarning`, and
    `python -m FORMER` runs it.

    Args:
        names (`Mapping[str, str]`): full names of modules by their full former names.
    """

    def __init__(self, names: Mapping[str, str]):
        self.names = names

    def install(self) -> None:
        """Installs it as the last finder, so that an existing module is never replaced."""
        sys.meta_path.append(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Moved(self.names[fullname])) if fullname in self.names else None


class _Moved(Loader):
    def __init__(self, name: str):
        self.name = name

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__
        warnings.warn(f"{former} is now {self.name}", DeprecationWarning, stacklevel=2)
        # An import returns what is here after execution.
        sys.modules[former] = importlib.import_module(self.name)

    def get_code(self, fullname: str) -> CodeType:
        """The code that `python -m` runs."""
        program = f"import runpy\nrunpy.run_module({self.name!r}, run_name='__main__', alter_sys=True)"
        return compile(program, f"<{fullname}>", "exec")


__all__ = ["FormerNames"]
