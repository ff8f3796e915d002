"""What tests share: the toy parts, installed as a stranger's would be."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the program does
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    if signal.getsignal(number) is signal.SIG_IGN:  # as shells start what runs in the background: programs keep it so
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # helpers, benchmarks


IN_ONE_PROCESS = {"test_parity.py", "test_resume.py", "test_quickstart.py", "test_kill.py", "test_smollm2.py"}
"""Files whose tests share what they train or load, and files that take long, which are started first."""
SHORT = {"test_every_family.py"}
"""Files of many short tests, which are started last: so all processes end at the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name in SHORT)


class GroupedScheduling(LoadScopeScheduling):
    """`--dist loadgroup`: tests one by one, except for some files, each of which stays in one process.

    xdist 3.8 loses its own groups with pytest 9.2: https://github.com/pytest-dev/pytest-xdist/issues/1386
    """

    def _split_scope(self, nodeid: str) -> str:
        path, _, _ = nodeid.partition("::")
        return path if Path(path).name in IN_ONE_PROCESS else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> GroupedScheduling | None:
    return GroupedScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry holds the toy parts alone."""
    _install(monkeypatch, "toys")


@pytest.fixture
def toys_at_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy parts, and language models of ours with sites and adapters for them."""
    _install(monkeypatch, "toys", "magma_lms", "magma_adapters")


@pytest.fixture(scope="module")
def stored_toys() -> Iterator[None]:
    """The same for all tests of a file, and the toy language model with weights in a folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _install(monkeypatch, "toys", "stored_toy")
        yield


def _install(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    from magma.plugins import registry

    toy = registry.Registry([EntryPoint(name, name, "magma") for name in modules])
    assert not any(plugin.problem for plugin in toy.plugins), toy.plugins
    for module in ("magma.recipe.recipe", "magma.recipe.parts", "magma.checkpoint", "magma.plugins.registry"):
        __import__(module)
        monkeypatch.setattr(sys.modules[module], "installed", lambda: toy)
