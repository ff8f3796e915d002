"""A folder of a model with two inputs, and the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from lmms_folders import IMAGE, SOUND, write

import magma
from magma import Magma


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("folders") / "both", image=IMAGE, sound=SOUND)


@pytest.fixture(scope="module")
def model(folder: Path) -> Magma:
    return magma.load(folder)
