"""A language model of each family."""

from __future__ import annotations

import pytest
from families import FAMILIES, build
from magma_lms.transformers_lm import TransformersLM


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> TransformersLM:
    return build(request.param)
