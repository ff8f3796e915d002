"""What an adapter promises."""

from __future__ import annotations

from .subject import Check, PartUnderTest, SublayerCall, another, require, same


def width_is_kept(subject: PartUnderTest) -> None:
    """[b, t, d] stays [b, t, d]."""
    adapter = subject.make()
    (given,) = subject.inputs(adapter)
    found = subject.call(adapter, given)
    require(found.shape == given.shape, f"given {list(given.shape)}, `forward` gave {list(found.shape)}")


def positions_do_not_mix(subject: PartUnderTest) -> None:
    """A change at one position shows there alone."""
    adapter = subject.make()
    (given,) = subject.inputs(adapter)
    other = given.clone()
    other[:, 2] = another(other[:, 2])
    one, two = subject.call(adapter, given), subject.call(adapter, other)
    rest = [0, 1, 3, 4, 5]
    same(one[:, rest], two[:, rest], "what comes out where nothing was changed", 1e-5)


def calls_sublayer(subject: PartUnderTest) -> None:
    """The sublayer is called, and with `passes_input_through` once, with the input itself."""
    adapter = subject.make()
    (given,) = subject.inputs(adapter)
    sublayer = SublayerCall(given)
    adapter(given, sublayer)
    require(bool(sublayer.seen), "the sublayer is never called")
    if adapter.passes_input_through:
        ours = len(sublayer.seen) == 1 and sublayer.seen[0] is given
        require(ours, "`passes_input_through` is True, but the sublayer is not called once with the input itself")


CHECKS: tuple[Check, ...] = (
    width_is_kept,
    positions_do_not_mix,
    calls_sublayer,
)
