"""What tests share: the toy parts, installed as a stranger's would be."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the program does
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # helpers, benchmarks


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry holds the toy parts alone."""
    from magma import registry

    toy = registry.Registry([EntryPoint("toys", "toys", "magma")])
    assert not toy.plugins[0].problem, toy.plugins[0].problem
    for module in ("magma.recipe", "magma.checkpoint", "magma.registry"):
        __import__(module)
        monkeypatch.setattr(sys.modules[module], "installed", lambda: toy)
