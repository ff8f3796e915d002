"""What every part promises, as checks: `test_lidar = magma.testing.conformance(Lidar)` in a plugin's own tests.

`magma plugin check NAME` runs the same. A part's `trial` gives a small configuration and inputs to try it with.
"""

from .plugins.conformance.run import ALL, Finding, checks, conformance, examine
from .plugins.conformance.subject import Check, Subject, tokens

__all__ = ["ALL", "Check", "Finding", "Subject", "checks", "conformance", "examine", "tokens"]
