"""Every tower of the installed transformers, as a tiny model: it works exactly, or it is refused with a reason.

All checks of a type share its model, so one test runs all of them and names those that fail.
"""

from __future__ import annotations

import sys
from pathlib import Path

import encoder_zoo as zoo
import pytest
from encoder_checks import CHECKS, Subject

sys.path.append(str(Path(__file__).parents[3] / "docs"))
import encoders as page

from magma import PartError


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", page.listed())
def test_type(name: str, tmp_path: Path) -> None:
    subject = Subject(name, tmp_path)
    problems = {}
    for check in CHECKS:
        try:
            check(subject)
        except Exception as error:  # the other checks say more
            problems[check.__name__] = f"{type(error).__name__}: {error}".splitlines()[0]
    if page.version() in page.text() and (line := page.line(name, subject.encoder)) not in page.text():
        problems["docs"] = f"`python docs/encoders.py` writes {line!r}"
    assert not problems, problems


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_lists_every_type() -> None:
    """The library is asked for its list."""
    if page.version() not in page.text():
        pytest.skip("the page is about another release of transformers")
    assert page.listed() == zoo.names()
    assert page.others() in page.text()
    assert page.inside() in page.text()
    assert page.counts() in page.text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(zoo.REFUSED))
def test_refused_type(name: str, tmp_path: Path) -> None:
    with pytest.raises(PartError, match="hf: "):
        Subject(name, tmp_path)
