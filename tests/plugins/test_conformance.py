"""Every part that comes with MAGMA keeps what a part promises."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from magma import testing
from magma.plugins.registry import Entry, installed

OURS = [entry for entry in installed().entries() if entry.plugin.distribution == "magma-multimodal"]


@pytest.mark.parametrize(
    ("entry", "check"),
    [(entry, check) for entry in OURS for check in testing.checks(entry.part)],
    ids=lambda value: f"{value.kind} {value.name}" if isinstance(value, Entry) else value.__name__,
)
def test_a_shipped_part_keeps_its_promises(entry: Entry, check: testing.Check, tmp_path: Path) -> None:
    if entry.name in ("coco_captions", "nocaps") and shutil.which("java") is None:
        pytest.skip("captions are scored with Java, which is not here")
    check(testing.PartUnderTest(entry.part, entry.part.check_inputs(tmp_path)))


def test_there_is_at_least_one_of_every_kind() -> None:
    assert {entry.kind for entry in OURS} == {"encoder", "prefix", "adapter", "lm", "head", "data", "task"}
