"""Every causal family of the installed transformers, as a tiny model: it works exactly, or it is refused with a reason.

All checks of a family share its model, so one test runs all of them and names those that fail.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import causal_zoo as zoo
import pytest
import torch
from causal_checks import CHECKS, Family
from magma_lms.causal import Causal

from magma import PartError

REFUSED = sorted({*zoo.UNSUPPORTED, *zoo.IMPOSSIBLE} & set(zoo.all_names()) - {"gemma3n"})
"""All others must work."""


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that writes the table of the documentation."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "docs"))
    return importlib.import_module("language_models")


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_family(name: str, tmp_path: Path, page: Any) -> None:
    family = Family(name, tmp_path)
    problems = {}
    for check in CHECKS:
        torch.manual_seed(0)
        try:
            check(family)
        except Exception as error:  # the other checks say more
            problems[check.__name__] = f"{type(error).__name__}: {error}".splitlines()[0]
    if page.version() in page.text() and (line := page.line(name, family.lm)) not in page.text():
        problems["docs"] = f"`python docs/language_models.py` writes {line!r}"
    assert not problems, problems


def test_the_page_lists_every_family(page: Any) -> None:
    text = page.text()
    if page.version() not in text:
        pytest.skip("the page is about another release of transformers")
    assert page.others() in text
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")][
        : -len(zoo.REASONS)
    ] == zoo.names()


@pytest.mark.slow
def test_a_short_text_shows_how_attention_selects_blocks(tmp_path: Path) -> None:
    """MiniMax M3 selects whole blocks of positions, which padding on the left would move."""
    zoo.configuration("minimax_m3_vl_text", index_block_size=128, index_topk_blocks=16).save_pretrained(tmp_path)
    structure = Causal(Causal.Config(weights=str(tmp_path))).structure
    assert structure.mode.rows == "single"
    assert not structure.packs


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_refused_family(name: str) -> None:
    architecture = zoo.fields(name) if name in zoo.UNSUPPORTED else {"model_type": name}
    with pytest.raises(PartError, match="lm"):
        Causal.build(architecture=architecture)
