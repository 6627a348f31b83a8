"""Imports point one way, and `model/` needs nothing of ours but itself: the map of CONTRIBUTING.md."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]

# A file imports from its own folder and from those of lines above; `alit_hf` itself stands for `__init__.py`.
LAYERS = [
    {"utils", "model"},
    {"codes", "conversion", "data", "losses", "networks"},
    {"alit_hf"},
    {"evaluation", "token_datasets"},
    {"analysis"},
    {"demo"},
    {"cli"},
]
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def modules(folder: Path) -> dict[str, Path]:
    """The files under `folder`, by the names that they are imported under."""
    paths = {".".join(path.relative_to(folder.parent).with_suffix("").parts): path for path in folder.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imported(name: str, path: Path) -> Iterator[str]:
    """Full names of what a file imports, in functions and for type checkers, too: modules, or names in them."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_of(target: str, known: dict[str, Path]) -> str | None:
    """The module that a full name is, or is in."""
    package = target.rpartition(".")[0]
    return target if target in known else package if package in known else None


def graph(folder: Path) -> dict[str, set[str]]:
    known = modules(folder)
    targets = {name: {module_of(target, known) for target in imported(name, path)} for name, path in known.items()}
    return {name: found - {None, name} for name, found in targets.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of a circle and what leads to one, or nothing."""
    rest = dict(edges)
    while free := [name for name, targets in rest.items() if not targets & rest.keys()]:
        for name in free:
            del rest[name]
    return sorted(rest)


def room(name: str) -> str:
    """The folder or file of the package that a module is in."""
    return name.split(".")[1] if "." in name else name


PACKAGE = modules(ROOT / "src" / "alit_hf")
GRAPH = graph(ROOT / "src" / "alit_hf")


def test_every_room_has_its_place():
    assert {room(name) for name in PACKAGE} == set(RANKS)


def test_imports_point_one_way():
    wrong = [
        f"{name} imports {target}"
        for name, targets in GRAPH.items()
        for target in targets
        if room(name) != room(target) and RANKS[room(target)] >= RANKS[room(name)]
    ]
    assert not wrong


def test_no_circles():
    assert not circle(GRAPH)


def test_the_package_does_not_import_training():
    assert not [
        f"{name} imports {target}"
        for name, path in PACKAGE.items()
        for target in imported(name, path)
        if re.match(r"training\b", target)
    ]


def test_training_has_no_circles_of_files_or_rooms():
    files = graph(ROOT / "training")
    assert not circle(files)
    rooms = {room(name): set() for name in files}
    for name, targets in files.items():
        rooms[room(name)] |= {room(target) for target in targets} - {room(name)}
    assert not circle(rooms)


@pytest.mark.parametrize("path", [p for n, p in PACKAGE.items() if room(n) == "model"], ids=lambda path: path.name)
def test_what_a_push_copies_names_its_siblings_flatly(path):
    """transformers follows `from .name import` and copies these files into one folder."""
    siblings = {other.stem for other in path.parent.glob("[!_]*.py")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert (node.level, node.module in siblings) == (1, True), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not [name for name in names if name.split(".")[0] in ("alit_hf", "training")], ast.unparse(node)


class TestTheTest:
    """A check that sees no import would find no wrong one."""

    @pytest.fixture
    def package(self, tmp_path):
        folder = tmp_path / "package"
        (folder / "inner").mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "inner" / "__init__.py").write_text("from .. import first\n")
        (folder / "first.py").write_text("def f():\n    from package.inner import second\n")
        (folder / "inner" / "second.py").write_text("import package.first\nfrom .third import value\n")
        (folder / "inner" / "third.py").write_text("import json\nvalue = 1\n")
        return folder

    def test_finds_every_kind_of_import(self, package):
        assert graph(package) == {
            "package": set(),
            "package.first": {"package.inner.second"},
            "package.inner": {"package.first"},
            "package.inner.second": {"package.first", "package.inner.third"},
            "package.inner.third": set(),
        }

    def test_finds_a_circle(self, package):
        edges = graph(package)
        assert {"package.first", "package.inner.second"} <= set(circle(edges))
        edges["package.first"] = set()
        assert circle(edges) == []

    def test_the_package_has_imports(self):
        across = [1 for name, targets in GRAPH.items() for target in targets if room(name) != room(target)]
        assert len(across) > 100
        assert len(list(itertools.chain(*GRAPH.values()))) > 300
