"""Run the checks of a part: as a list of findings, or as a pytest test."""

from __future__ import annotations

import inspect
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...deprecation import renamed_arguments
from ...errors import PluginError
from ...interfaces import Adapter, Callback, DataSource, Encoder, FrozenLM, Head, Module, Part, Prefix, Task
from ...values import CheckInputs
from . import adapter, callback, data, encoder, head, lm, lm_key_values, lm_sites, losses, module, prefix, task, text
from . import part as any_part
from .subject import Check, PartUnderTest

_KINDS: tuple[tuple[type[Part], tuple[Check, ...]], ...] = (
    (Part, any_part.CHECKS),
    (Module, (*module.CHECKS, *losses.CHECKS)),
    (Encoder, encoder.CHECKS),
    (Prefix, prefix.CHECKS),
    (Adapter, adapter.CHECKS),
    (FrozenLM, (*lm.CHECKS, *lm_sites.CHECKS, *lm_key_values.CHECKS, *text.CHECKS)),
    (Head, head.CHECKS),
    (DataSource, data.CHECKS),
    (Task, task.CHECKS),
    (Callback, callback.CHECKS),
)
ALL: list[tuple[type[Part], Check]] = [(kind, check) for kind, checks in _KINDS for check in checks]
"""Every check, with the kind of part that it is for."""


@dataclass(frozen=True)
class Finding:
    """The result of one check of a part. `problem` is empty if the check passes."""

    check: str
    promise: str
    problem: str


def checks(part: type[Part]) -> list[Check]:
    """The checks of a part, in the order in which they run."""
    return [check for kind, check in ALL if issubclass(part, kind)]


@renamed_arguments(trial="check_inputs")
def run_checks(part: type[Part], check_inputs: CheckInputs | None = None) -> list[Finding]:
    """Run every check of a part.

    Exceptions of the part are findings. The states of the global random generators are restored.

    Args:
        part: The class.
        check_inputs: Configuration and inputs. Default: `part.check_inputs`.
    """
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()  # a part may use them
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for check in checks(part):
            problem = ""
            try:
                check(PartUnderTest(part, check_inputs or part.check_inputs(Path(folder))))
            except Exception as error:  # of the part
                problem = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                problem = problem or type(error).__name__
            found.append(Finding(check.__name__, inspect.getdoc(check) or "", problem))
    random.setstate(generators[0])
    np.random.set_state(generators[1])
    torch.set_rng_state(generators[2])
    return found


@renamed_arguments(trial="check_inputs")
def conformance(part: type[Part], check_inputs: CheckInputs | None = None) -> Any:
    """A pytest test of a part with one case for each check: `test_lidar = conformance(Lidar)`.

    Args:
        part: The class.
        check_inputs: Configuration and inputs. Default: `part.check_inputs`.

    Raises:
        PluginError: `part` is not a subclass of a kind of parts.
    """
    import pytest

    if not (inspect.isclass(part) and issubclass(part, Part) and hasattr(part, "kind")):
        raise PluginError(f"conformance: given {part!r}; allowed: a subclass of Encoder, Prefix, Adapter, ...")

    @pytest.mark.parametrize("check", checks(part), ids=lambda check: check.__name__)
    def test(check: Check, tmp_path: Path) -> None:
        check(PartUnderTest(part, check_inputs or part.check_inputs(tmp_path)))

    return test
