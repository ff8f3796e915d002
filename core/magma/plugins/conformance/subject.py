"""The part under test: how its kind is built and called, and helpers of the checks.

Axes are those of `interfaces`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from ...adapters import adapter_argument
from ...context import Context
from ...deprecation import renamed_arguments
from ...errors import PartError
from ...interfaces import Adapter, DataSource, Encoder, FrozenLM, Head, Module, Part, Prefix, Task
from ...key_values import KeyValueSlot
from ...sites import Site
from ...values import BatchLayout, CheckInputs, Features, Prepared, tensors_in
from ..part_of import construct
from .sample_sites import DIM as DIM
from .sample_sites import HEADS, ROWS, TOKENS, sample_context, sample_sites

WIDTH, FEATURE_COUNTS = 16, (5, 3)
"""Width of the features, and features per item, with which a prefix is checked; `DIM` is the language model's width."""
TEXT = "The answer is seven, and so on."
MANY = 40
"""Maximum number of examples or questions that are checked."""
Check = Callable[["PartUnderTest"], None]


@renamed_arguments(trial="check_inputs")
class PartUnderTest:
    """A part with its configuration and inputs, and how its kind is built and called."""

    def __init__(self, part: type[Part], check_inputs: CheckInputs) -> None:
        self.part, self.inputs_to_check = part, check_inputs
        self.site_number = 0
        """Of an adapter: which of the accepted sites it is built for."""
        self.refused: list[str] = []
        """The messages with which an adapter refuses sites."""
        self.failed: list[str] = []
        """Other errors of an adapter at sites."""

    @property
    def context(self) -> tuple[Any, ...]:
        """What the part is built with after its config."""
        if issubclass(self.part, Prefix):
            return (self.widths[0], max(self.feature_counts), self.widths[1])
        if issubclass(self.part, Head):
            return (DIM,)
        if issubclass(self.part, DataSource | Task):
            return (0,)
        if issubclass(self.part, Adapter):
            require(bool(self.accepted), f"it accepts no site: {'; '.join([*self.refused, *self.failed])}")
            return (adapter_argument(self.part, sample_sites()[self.accepted[self.site_number]]),)
        return ()

    @cached_property
    def accepted(self) -> list[int]:
        """Of an adapter: which of the sample sites it accepts."""
        assert issubclass(self.part, Adapter)
        found, widths = [], set()
        for i, site in enumerate(sample_sites()):
            try:
                argument = adapter_argument(self.part, site)
                self.part(self.config(), argument)
            except PartError as error:
                self.refused.append(f"{site.path}: {error}")
                continue
            except Exception as error:  # of the part
                self.failed.append(f"{site.path}: {type(error).__name__}: {error}")
                continue
            if isinstance(argument, int) and argument in widths:
                continue  # it is the same adapter
            widths.add(argument)
            found.append(i)
        return found

    def config(self) -> Any:
        """The configuration of `check_inputs`."""
        try:
            return self.part.Config(**self.inputs_to_check.config)
        except ValidationError as error:
            raise AssertionError(
                f"the config of its `check_inputs`, {dict(self.inputs_to_check.config)} is not accepted: {error}"
            ) from error

    def make(self, seed: int = 0) -> Any:
        """A ready instance in eval mode; `seed` decides its random weights."""
        context = self.context  # it may draw random numbers
        torch.manual_seed(seed)
        made: Any = construct(self.part, self.config(), *context)
        if isinstance(made, Module):
            made.load_all_weights()
            made.eval()
        return made.float() if isinstance(made, FrozenLM) else made

    def inputs(self, module: Any) -> list[Prepared]:
        """An input for `call` with at least two rows."""
        draw = torch.Generator().manual_seed(7)
        if isinstance(module, Encoder):
            return [module.stack([module.prepare(raw) for raw in self.good])]
        if isinstance(module, Prefix):
            return [torch.randn(2, max(self.feature_counts), self.widths[0], generator=draw)]
        if isinstance(module, Adapter):
            return [torch.randn(ROWS, TOKENS, module.site.in_features, generator=draw)]
        if isinstance(module, Head):
            return [torch.randn(3, DIM, generator=draw)]
        assert isinstance(module, FrozenLM)
        with torch.no_grad():
            return [module.embed(tokens(module)).clone()]

    def call(self, module: Any, given: Prepared, first_row: int = 0) -> Tensor:
        """The values of a forward pass; the first axis are rows. `given` starts at this row of `inputs`."""
        if isinstance(module, Encoder):
            return features_of(module(given)).values
        if isinstance(module, Prefix):
            return features_of(module(Features(given))).values
        if isinstance(module, Adapter):
            found = self.run_adapter(module, given, first_row=first_row)
        elif isinstance(module, FrozenLM):
            rows, width = given.shape[:2]
            ids = tokens(module)[first_row : first_row + rows].to(given.device)
            found = module(given, layout_of(rows, width, given.device, token_ids=ids))
            found = found.view(rows, width, -1)
        else:
            found = module(given)
        require(isinstance(found, Tensor), f"`forward` gave a {type(found).__name__}; expected: a tensor")
        value: Tensor = found
        return value

    def run_adapter(
        self,
        adapter: Adapter,
        given: Tensor,
        sublayer: Callable[[Tensor], Tensor] | None = None,
        context: Context | None = None,
        first_row: int = 0,
    ) -> Tensor:
        """The output of an adapter, with the sample context from a row on by default."""
        if context is None:
            rows = torch.arange(first_row, first_row + len(given), device=given.device)
            context = sample_context(given).select(rows)
        given_context = (context,) if adapter.uses_context else ()
        return adapter(given, sublayer or SublayerCall(given, adapter.site), *given_context)

    @property
    def widths(self) -> tuple[int, int]:
        """Of a prefix: the width of the features and that of the embeddings."""
        return self.inputs_to_check.widths or (WIDTH, DIM)

    @property
    def feature_counts(self) -> tuple[int, int]:
        """Of a prefix: the features of two items, of which one may have the most."""
        good = self.inputs_to_check.good or FEATURE_COUNTS
        require(
            len(good) == 2 and all(isinstance(count, int) and count > 0 for count in good),
            f"its `check_inputs` has `good` = {good!r}; allowed for a prefix: two numbers of features",
        )
        return good[0], good[1]

    @property
    def good(self) -> list[Any]:
        """Raw inputs that an encoder accepts."""
        require(
            len(self.inputs_to_check.good) >= 2,
            "its `check_inputs` has too few `good` inputs; allowed: at least two different ones",
        )
        return list(self.inputs_to_check.good)


class SublayerCall:
    """A frozen map of each position, that of the site's linear layer if it is one; it records its inputs.

    At a site with `key_values`, a position attends to itself and to the keys that an adapter adds.
    """

    def __init__(self, like: Tensor, site: Site) -> None:
        if site.linear is None:
            draw = torch.Generator().manual_seed(3)
            weight = torch.randn(site.in_features, site.out_features, generator=draw) / math.sqrt(site.in_features)
            weight = weight.to(device=like.device, dtype=like.dtype)
            self.run: Callable[[Tensor], Tensor] = lambda x: _attend(torch.tanh(x @ weight), site.key_values)
        else:
            self.run = site.linear.to(device=like.device, dtype=like.dtype)
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.run(x)


def _attend(x: Tensor, slot: KeyValueSlot | None) -> Tensor:
    """Each position [b, t, d] attends to itself, with queries, keys and values cut out of x, and to further keys."""
    if slot is None:
        return x
    queries = x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)
    keys = queries[:, : slot.shape.heads]
    t = x.shape[1]
    mask = torch.eye(t, dtype=torch.bool, device=x.device)[None, None]

    def run(keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=True)

    return slot.attend(run, keys, keys, mask).transpose(1, 2).flatten(2)


def tokens(lm: FrozenLM) -> Tensor:
    """[2, t] ids of two texts of one length."""
    ids = lm.encode(TEXT)[: 12 if lm.context is None else min(12, lm.context - 4)]
    return torch.tensor([ids, ids[::-1]])


def require(holds: bool, otherwise: str) -> None:
    """Fail with this message unless it `holds`."""
    if not holds:
        raise AssertionError(otherwise)


def features_of(found: Any) -> Features:
    """The result of `forward`, after a check that it is `Features` with three axes."""
    require(isinstance(found, Features), f"`forward` gave a {type(found).__name__}; expected: magma.Features")
    require(found.values.ndim == 3, f"`forward` gave values {list(found.values.shape)}; expected: three axes")
    return found  # type: ignore[no-any-return]  # checked above


def layout_of(
    rows: int,
    width: int,
    device: Any = "cpu",
    lengths: Sequence[int] | None = None,
    token_ids: Tensor | None = None,
) -> BatchLayout:
    """A batch of unpacked rows in which every position is scored."""
    return BatchLayout(
        torch.arange(width, device=device).repeat(rows, 1),
        torch.tensor(lengths or [width] * rows, device=device),
        torch.arange(rows * width, device=device),
        token_ids=token_ids,
    )


def same_items(one: Prepared, other: Prepared, what: str) -> None:
    """Fail unless two prepared items are equal."""
    pairs = tensors_in(one), tensors_in(other)
    require(len(pairs[0]) == len(pairs[1]), f"{what}: {len(pairs[0])} tensors against {len(pairs[1])}")
    for a, b in zip(*pairs, strict=True):
        same(a, b, what)


def same(one: Tensor, other: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Fail unless two tensors are equal up to a tolerance, which is relative to the largest value."""
    require(one.shape == other.shape, f"{what}: {list(one.shape)} against {list(other.shape)}")
    one, other = one.detach().float(), other.detach().float()
    far = float((one - other).abs().max()) if one.numel() else 0.0
    scale = 1 + float(other.abs().max()) if one.numel() else 1.0
    require(far <= tolerance * scale, f"{what}: they differ by {far:.2g}")


def another(values: Tensor) -> Tensor:
    """Other values of the same shape. They do not differ by a constant, which a LayerNorm would remove."""
    return torch.randn(values.shape, generator=torch.Generator().manual_seed(11)) * (1 + values.detach().std())
