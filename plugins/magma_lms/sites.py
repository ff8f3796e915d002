"""Finds the places of adapters: the sublayers and the linear layers of each block, and the blocks themselves.

No name is looked at. A sublayer that mixes positions is "attention", also a recurrent one; any other is "mlp". A linear
layer is a place if it computes every position, which experts and layers of pooled positions do not, and returns one
tensor: the routers of some mixtures are linear layers that return several.

Axes: b batch, t tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from magma import Sublayer

from .linear import is_linear
from .tracing import Call, Key, first_tensor


@dataclass(frozen=True)
class Place:
    """Where a site is: one module, or a span from the input of one module to the output of a later one."""

    path: str
    """That of the site: "attention", "mlp", "block", or the path of a linear layer within its block."""
    block: int
    """The index of the block that has it; of the first one, if blocks share it."""
    entry: str
    """Path of the module whose input is the input of the sublayer."""
    exit: str
    """Path of the module whose output is the output of the sublayer."""
    key: Key
    """Where the hidden states are among the arguments of the entry."""
    chain: tuple[str, ...] = ()
    """Paths of the modules of a span, if each one only reads the output of the one before it."""
    rows_first: bool = True
    """Whether the hidden states are [b, t, d] or [b * t, d]; XLNet has [t, b, d]."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the modules that it is known to consist of."""
        return self.chain or (self.entry, self.exit)

    @property
    def is_span(self) -> bool:
        """Whether the sublayer is not one module. Without a chain, its input cannot be changed then."""
        return self.entry != self.exit


@dataclass(frozen=True)
class _Candidate:
    entry: Call
    exit: Call
    mixes: bool


def find_blocks(model: nn.Module, decoder: Call) -> list[Call]:
    """The calls of the blocks: outermost members of module lists that map hidden states to hidden states."""
    members = {id(one) for module in model.modules() if isinstance(module, nn.ModuleList) for one in module}

    def search(call: Call) -> Iterator[Call]:
        for inner in call.inner:
            if id(inner.module) in members and inner.hidden_key() is not None and _matrices(inner.module) > 1:
                yield inner
            else:
                yield from search(inner)

    return list(search(decoder))


def find_sublayers(blocks: Sequence[Call], width: int, rows: int) -> list[Place]:
    """The sublayers of all blocks, in the order of their calls; a module that several blocks share is listed once.

    Args:
        blocks: The calls of the blocks.
        width: The width of the decoder's output, for blocks that carry several streams of hidden states.
        rows: b of the traced batch.
    """
    paths = list(dict.fromkeys(block.path for block in blocks))
    found: list[tuple[int, _Candidate]] = []
    for block in blocks:
        outermost = _outermost(block, width) or _outermost(block, _width(block))
        candidates = _find_candidates(block, outermost)
        if len(candidates) == 2 and all(one.mixes for one in candidates):
            first, second = candidates
            if type(first.entry.module) is not type(second.entry.module):  # RWKV's feed-forward looks one token back
                candidates = [first, _Candidate(second.entry, second.exit, False)]
        found += [(paths.index(block.path), _without_sequential(one)) for one in candidates]
    # A layer may take its keys from another one: then it mixes, but not what it is given.
    mixing = {type(one.entry.module) for _, one in found if one.mixes}
    places: dict[str, Place] = {}
    for index, one in found:
        is_mixer = one.mixes or (type(one.entry.module) in mixing and one.entry is one.exit)
        key = next(key for key, given in one.entry.tensors().items() if given.shape[-1] == _width(one.exit))
        chain = _chain(blocks, one) if one.entry is not one.exit else ()
        path: Sublayer = "attention" if is_mixer else "mlp"
        rows_first = _rows_first(one.entry.tensors()[key], rows)
        place = Place(path, index, one.entry.path, one.exit.path, key, chain, rows_first)
        places.setdefault(place.entry, place)
    return list(places.values())


def find_block_places(blocks: Sequence[Call], rows: int) -> list[Place]:
    """The blocks themselves, as far as their hidden states have one stream."""
    paths = list(dict.fromkeys(block.path for block in blocks))
    found: dict[str, Place] = {}
    for block in blocks:
        key = block.hidden_key()
        if key is not None and block.tensors()[key].ndim <= 3:
            rows_first = _rows_first(block.tensors()[key], rows)
            place = Place("block", paths.index(block.path), block.path, block.path, key, (), rows_first)
            found.setdefault(block.path, place)
    return list(found.values())


def find_linear_places(blocks: Sequence[Call], rows: int, columns: int) -> list[Place]:
    """The linear layers of all blocks that compute every position, in the order of their calls."""
    paths = list(dict.fromkeys(block.path for block in blocks))
    found: dict[str, Place] = {}
    partial: set[str] = set()
    for block in blocks:
        for call in block.everything_inside():
            if not is_linear(call.module) or not call.path.startswith(f"{block.path}."):
                continue
            key, given = next(iter(call.tensors().items()), (0, None))
            covers = given is not None and given.numel() == rows * columns * given.shape[-1]
            if given is None or given.ndim not in (2, 3) or not covers or not isinstance(call.output, Tensor):
                partial.add(call.path)
                continue
            path = call.path.removeprefix(f"{block.path}.")
            rows_first = _rows_first(given, rows)
            found.setdefault(call.path, Place(path, paths.index(block.path), call.path, call.path, key, (), rows_first))
    return [place for place in found.values() if place.entry not in partial]


def _rows_first(x: Tensor, rows: int) -> bool:
    """Whether a traced tensor [b, t, d] or [b * t, d] has the rows first: there are fewer rows than positions."""
    return x.ndim == 2 or x.shape[0] == rows


def _without_sequential(one: _Candidate) -> _Candidate:
    """The span of the members of an `nn.Sequential`: it runs all its children, so it cannot hold an adapter."""
    if one.entry is one.exit and isinstance(one.entry.module, nn.Sequential):
        return _Candidate(one.entry.inner[0], one.entry.inner[-1], one.mixes)
    return one


def _find_candidates(block: Call, outermost: Sequence[tuple[Call, Call | None]]) -> list[_Candidate]:
    """The sublayers of a block."""
    if not outermost:
        return [_Candidate(block, block, block.mixes)]
    found = [_with_exit(call, outer) for call, outer in outermost]
    pair = _pair_of_matrices(block, _width(found[0].exit), found)
    others = [one for one in found if not one.mixes]
    if pair and _size(pair.entry.module) + _size(pair.exit.module) > sum(_size(one.entry.module) for one in others):
        found = [one for one in found if one.mixes] + [pair]
    return found


def _outermost(call: Call, width: int) -> list[tuple[Call, Call | None]]:
    """The outermost sublayers of this width inside a call, each with the module around it that is more than that.

    A sublayer has two or more matrices. What holds a mixer with half of its parameters is more than a sublayer.
    """
    found: list[tuple[Call, Call | None]] = []
    for inner in call.inner:
        deeper = _outermost(inner, width)
        fits = _matrices(inner.module) > 1 and inner.hidden_key(width) is not None
        mixers = sum(_size(one.module) for one, _ in deeper if one.mixes)
        if fits and 2 * mixers < _size(inner.module):
            found.append((inner, None))
        else:
            found += [(one, outer or inner) for one, outer in deeper]
    inputs = {id(tensor) for one, _ in found for tensor in one.tensors().values()}
    return [(one, outer) for one, outer in found if id(first_tensor(one.output)) not in inputs or one.mixes]


def _with_exit(call: Call, outer: Call | None) -> _Candidate:
    """The sublayer that begins with this call.

    It ends with the call, with two exceptions. If the module around it passes its output straight to a matrix (BERT),
    it ends after this matrix. If it has already added another of its inputs, the residual (Bloom), it ends before that.
    """
    output = first_tensor(call.output)
    assert output is not None
    for other in outer.everything_inside() if outer else ():
        if _is_matrix(other) and any(given is output for given in other.tensors().values()) and _same(other, output):
            return _Candidate(call, other, call.mixes)
    others = [tensor for tensor in call.tensors().values() if tensor.shape == output.shape]
    for last in reversed([one for one in call.everything_inside() if _is_matrix(one) and _same(one, output)]):
        result = first_tensor(last.output)
        assert result is not None
        if any(torch.allclose(result.view_as(output) + other, output, atol=1e-5) for other in others):
            return _Candidate(call, last, call.mixes)
        break
    return _Candidate(call, call, call.mixes)


def _pair_of_matrices(block: Call, width: int, taken: Sequence[_Candidate]) -> _Candidate | None:
    """A feed-forward sublayer without a module: from the first matrix of the block's rest to its last one."""
    inside = {id(call) for one in taken for call in (one.entry, one.exit, *one.entry.everything_inside())}
    rest = [call for call in block.everything_inside() if _is_matrix(call) and id(call) not in inside]
    first = next((call for call in rest if _first_width(call) == width), None)
    last = next((call for call in reversed(rest) if _width(call) == width), None)
    if first is None or last is None or rest.index(last) <= rest.index(first):
        return None
    return _Candidate(first, last, False)


def _chain(blocks: Sequence[Call], one: _Candidate) -> tuple[str, ...]:
    """The modules from the entry to the exit, if each one only reads the output of the one before it, else none."""
    calls = [call for block in blocks for call in block.everything_inside() if not call.inner]
    if one.entry not in calls or len(one.entry.tensors()) > 1:
        return ()
    found = [one.entry]
    while found[-1] is not one.exit:
        output = first_tensor(found[-1].output)
        after = calls[calls.index(found[-1]) + 1 :]
        reader = next((call for call in after if next(iter(call.tensors().values()), None) is output), None)
        if reader is None or len(reader.tensors()) > 1:
            return ()
        found.append(reader)
    return tuple(call.path for call in found)


def _same(call: Call, output: Tensor) -> bool:
    found = first_tensor(call.output)
    return found is not None and found.shape[-1] == output.shape[-1] and found.numel() == output.numel()


def _width(call: Call) -> int:
    output = first_tensor(call.output)
    return 0 if output is None or not output.ndim else output.shape[-1]


def _first_width(call: Call) -> int:
    given = next(iter(call.tensors().values()), None)
    return 0 if given is None or not given.ndim else given.shape[-1]


def _is_matrix(call: Call) -> bool:
    """Whether the module only multiplies by one matrix."""
    weights = [parameter for parameter in call.module.parameters() if parameter.ndim > 1]
    return not call.inner and len(weights) == 1 and weights[0].ndim == 2


def _matrices(module: nn.Module) -> int:
    return sum(parameter.ndim > 1 for parameter in module.parameters())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
