"""A small split of VQA data."""

from __future__ import annotations

from pathlib import Path

import pytest
from task_rows import SPLITS, jsonl


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "vqa2", SPLITS)
