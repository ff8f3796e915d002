"""Reads and writes the JSON files of a folder of shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from magma import atomic_write


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
