"""Every causal family of the installed transformers, as a tiny model: it works exactly, or it is refused with a reason.

All checks of a family share its model, so one test runs all of them and names those that fail.
"""

from __future__ import annotations

from pathlib import Path

import causal_zoo as zoo
import pytest
import torch
from causal_checks import CHECKS, Family, Spelled
from magma_lms.causal import Causal

from magma import PartError

REFUSED = sorted({*zoo.UNSUPPORTED, *zoo.IMPOSSIBLE} & set(zoo.all_names()) - {"gemma3n"})
"""All others must work."""


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_family(name: str, tmp_path: Path) -> None:
    model = zoo.build(name)
    model.save_pretrained(tmp_path / "weights")
    lm = Spelled(Spelled.Config(weights=str(tmp_path / "weights")))
    on_meta = sum(parameter.numel() for parameter in lm.parameters())
    lm.load_weights()
    lm.freeze()
    assert on_meta == sum(parameter.numel() for parameter in lm.parameters())
    family = Family(name, model, lm, tmp_path)
    problems = {}
    for check in CHECKS:
        torch.manual_seed(0)
        try:
            check(family)
        except Exception as error:  # the other checks say more
            problems[check.__name__] = f"{type(error).__name__}: {error}".splitlines()[0]
    assert not problems, problems


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_refused_family(name: str) -> None:
    architecture = zoo.fields(name) if name in zoo.UNSUPPORTED else {"model_type": name}
    with pytest.raises(PartError, match="lm"):
        Causal.build(architecture=architecture)
