"""Conformance checks of parts: `test_lidar = magma.testing.conformance(Lidar)` in the tests of a plugin.

`magma plugin check NAME` runs the same checks. A part's `check_inputs` gives a small configuration and inputs for them.
"""

from typing import Any

from .deprecation import renamed_export
from .plugins.conformance.run import ALL, Finding, checks, conformance, run_checks
from .plugins.conformance.subject import Check, PartUnderTest, tokens

__all__ = ["ALL", "Check", "Finding", "PartUnderTest", "checks", "conformance", "run_checks", "tokens"]

_RENAMED = {"Subject": "PartUnderTest", "examine": "run_checks"}


def __getattr__(name: str) -> Any:
    return globals()[renamed_export(__name__, name, _RENAMED)]
