"""Code to run once a module has been imported."""

import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class AfterImport(MetaPathFinder):
    """
    Calls functions, each once, after modules have been imported.

    A module can be imported in the middle of another one that needs it. A function is therefore called only when no
    module of `packages` is half imported, so that it can safely import any of them.

    Args:
        packages (`Collection[str]`): top-level packages that the functions import.
        functions (`Mapping[str, Callable[[], None]]`): what to call, by the full name of the module in one of
            `packages` that it waits for. An exception of a function is raised by the import, and the next import tries
            again.
    """

    def __init__(self, packages: Collection[str], functions: Mapping[str, Callable[[], None]]):
        self.packages = packages
        self.functions = dict(functions)
        self._imports = threading.local()

    def install(self) -> None:
        """Calls the functions whose modules are already imported, and waits for the others."""
        sys.meta_path.insert(0, self)
        self._call_functions()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self.functions or fullname.partition(".")[0] not in self.packages:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def execute(self, loader: Loader, module: ModuleType) -> None:
        """Runs a module's code and then the functions, unless another module is waiting for this one."""
        depth = getattr(self._imports, "depth", 0)
        self._imports.depth = depth + 1
        try:
            loader.exec_module(module)
        finally:
            self._imports.depth = depth
        if depth == 0:
            self._call_functions()

    def _call_functions(self) -> None:
        while imported := self.functions.keys() & sys.modules.keys():
            name = imported.pop()
            function = self.functions.pop(name)  # its imports lead here again
            try:
                function()
            except BaseException:
                self.functions[name] = function
                raise


class _Loader(Loader):
    """Wraps another loader until the module's code runs."""

    def __init__(self, loader: Loader, after_import: AfterImport):
        self.loader = loader
        self.after_import = after_import

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self.loader
        self.after_import.execute(self.loader, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


__all__ = ["AfterImport"]
