"""The layout of the packages: no import cycle, no long file, and each room says what it is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for top in ("core", "plugins") for path in (ROOT / top).glob("*/__init__.py"))
MAX_LINES = 400


def test_no_import_cycle_even_for_type_checkers() -> None:
    names = [package.name for package in PACKAGES]
    graph = grimp.build_graph(*names, exclude_type_checking_imports=False, cache_dir=None)
    edges = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert [sorted(cycle) for cycle in _cycles(edges)] == []


def test_a_cycle_would_be_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str](), "e": {"a", "e"}}
    assert sorted(map(sorted, _cycles(edges))) == [["a", "b", "c"], ["e"]]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_file_is_long(package: Path) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_package_says_what_it_is_for(package: Path) -> None:
    rooms = {path.parent for path in package.rglob("*.py")} - {ROOT / "core/magma/plugins/templates"}
    for room in rooms:
        init = room / "__init__.py"
        assert init.is_file(), f"{room} is no package"
        assert ast.get_docstring(ast.parse(init.read_text())), f"{init} has no docstring"


def _cycles(edges: Mapping[str, Set[str]]) -> Iterator[set[str]]:
    """The strongly connected parts that have a cycle (Tarjan 1972)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(node: str) -> Iterator[set[str]]:
        numbers[node] = lowest[node] = len(numbers)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in numbers:
                yield from visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], numbers[other])
        if lowest[node] == numbers[node]:
            found = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(found) > 1 or node in edges.get(node, ()):
                yield found

    for node in sorted(edges):
        if node not in numbers:
            yield from visit(node)
