"""Which checks a part gets, and two ways to run them: as a list of findings, and as a pytest test."""

from __future__ import annotations

import inspect
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import PluginError
from ...interfaces import Adapter, DataSource, Encoder, FrozenLM, Head, Module, Part, Prefix, Task
from ...values import CheckInputs
from . import adapter, data, encoder, head, lm, module, prefix, task, text
from . import part as any_part
from .subject import Check, PartUnderTest

_KINDS: tuple[tuple[type[Part], tuple[Check, ...]], ...] = (
    (Part, any_part.CHECKS),
    (Module, module.CHECKS),
    (Encoder, encoder.CHECKS),
    (Prefix, prefix.CHECKS),
    (Adapter, adapter.CHECKS),
    (FrozenLM, (*lm.CHECKS, *text.CHECKS)),
    (Head, head.CHECKS),
    (DataSource, data.CHECKS),
    (Task, task.CHECKS),
)
ALL: list[tuple[type[Part], Check]] = [(kind, check) for kind, checks in _KINDS for check in checks]
"""Every check, with the kind of part that it is for."""


@dataclass(frozen=True)
class Finding:
    """One check of one part: `problem` is "" where it holds."""

    check: str
    promise: str
    problem: str


def checks(part: type[Part]) -> list[Check]:
    """Those that apply to a part, in the order in which they run."""
    return [check for kind, check in ALL if issubclass(part, kind)]


def run_checks(part: type[Part], trial: CheckInputs | None = None) -> list[Finding]:
    """Run every check of a part; nothing is raised, whatever the part does. The global generators are left alone."""
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()  # a stranger's may be
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for check in checks(part):
            problem = ""
            try:
                check(PartUnderTest(part, trial or part.check_inputs(Path(folder))))
            except Exception as error:  # whatever a stranger's part does
                problem = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                problem = problem or type(error).__name__
            found.append(Finding(check.__name__, inspect.getdoc(check) or "", problem))
    random.setstate(generators[0])
    np.random.set_state(generators[1])
    torch.set_rng_state(generators[2])
    return found


def conformance(part: type[Part], trial: CheckInputs | None = None) -> Any:
    """A pytest test of a part, one case a check: `test_lidar = conformance(Lidar)`.

    Raises `PluginError` where `part` is none.
    """
    import pytest

    if not (inspect.isclass(part) and issubclass(part, Part) and hasattr(part, "kind")):
        raise PluginError(f"conformance: given {part!r}; allowed: a subclass of Encoder, Prefix, Adapter, ...")

    @pytest.mark.parametrize("check", checks(part), ids=lambda check: check.__name__)
    def test(check: Check, tmp_path: Path) -> None:
        check(PartUnderTest(part, trial or part.check_inputs(tmp_path)))

    return test
