"""What a head promises."""

from __future__ import annotations

from .subject import Check, PartUnderTest, require


def classes_have_logits(subject: PartUnderTest) -> None:
    """[m, d] gives [m, c] logits, one a class."""
    head = subject.make()
    (given,) = subject.inputs(head)
    found = subject.call(head, given)
    wanted = (len(given), len(head.classes))
    require(tuple(found.shape) == wanted, f"logits {list(found.shape)}; expected: {list(wanted)}")


CHECKS: tuple[Check, ...] = (classes_have_logits,)
