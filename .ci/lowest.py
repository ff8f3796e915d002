"""Prints pip constraints that pin every dependency of pyproject.toml to the lowest version it allows."""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
FLOOR = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)")


def pin(requirement: str) -> str:
    """`name>=1.2,<3` as `name==1.2`; a requirement without a lower bound is an error."""
    found = FLOOR.match(requirement)
    if found is None:
        raise SystemExit(f"{PYPROJECT.name}: {requirement!r} has no lower bound (name>=version)")
    return f"{found['name']}=={found['version']}"


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    print("\n".join(map(pin, [*project["dependencies"], *project["optional-dependencies"]["test"]])))
