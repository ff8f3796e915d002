"""What every part promises, as checks: `test_lidar = magma.testing.conformance(Lidar)` in a plugin's own tests.

`magma plugin check NAME` runs the same.
"""

from .plugins.conformance.checks import ALL, Check, Finding, Subject, checks, conformance, examine, tokens

__all__ = ["ALL", "Check", "Finding", "Subject", "checks", "conformance", "examine", "tokens"]
