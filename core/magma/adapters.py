"""The base class of adapters, and what the adapters of one language model share while it runs."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from .context import Context
from .deprecation import RenamedMember
from .errors import PartError
from .part import Module, PartConfig
from .sites import Site


class AdapterState:
    """What the adapters of a language model share: the context of the present batch, and the disabled tables."""

    def __init__(self) -> None:
        self.context: Context | None = None
        """Of the rows and columns that the blocks compute. None: there are no media."""
        self.disabled: frozenset[str] = frozenset()
        """Tables whose adapters are not run."""

    @contextmanager
    def use(self, context: Context | None, disabled: Collection[str]) -> Iterator[None]:
        """Run adapters with this context, without those of the disabled tables."""
        before = self.context, self.disabled
        self.context, self.disabled = context, frozenset(disabled)
        try:
            yield
        finally:
            self.context, self.disabled = before

    def context_of(self, x: Tensor) -> Context:
        """The context of the positions of x [b, t, d]: all columns, or the last ones if a module computes only those.

        Raises:
            PartError: x has other rows: [b * t, d] with all positions is accepted, a selection of them is not.
        """
        context = self.context
        if context is None:
            return Context.of_text(x)
        rows, columns = context.inputs.shape
        here, t = x.shape[:2]
        if here == rows and t <= columns:
            return context.from_end(t)
        if here == 1 and t % rows == 0 and t // rows <= columns:
            return context.from_end(t // rows).as_one_row()
        raise PartError(
            f"an adapter that uses the context or has `only_with`: given positions {[here, t]} of a batch "
            f"{[rows, columns]}; allowed: sites that compute every position"
        )

    def needs(self, inputs: Collection[str]) -> bool:
        """Whether an adapter that acts only with these inputs has to run for the present batch."""
        return bool(self.context and self.context.presence and self.context.presence.is_needed(inputs))

    def presence_mask(self, x: Tensor, inputs: Collection[str]) -> Tensor | None:
        """Whether the sequence of each position of x [b, t, d] has one of these inputs, [b, t]. None: all do.

        Raises:
            PartError: As `context_of`.
        """
        assert self.context is not None
        assert self.context.presence is not None
        if self.context.presence.mask(inputs) is None:
            return None
        presence = self.context_of(x).presence
        assert presence is not None
        return presence.mask(inputs)


class Adapter(Module):
    """Wraps one site of the frozen language model and owns only its own weights. Built as `Adapter(config, site)`.

    It must not mix positions: only the sublayer moves information along t. If the second argument of `__init__` is not
    called `site`, the class is built with the width of the site as an integer, and acts only where the widths of input
    and output are equal. `__init__` raises `PartError` for a site at which the adapter cannot act.
    """

    kind = "adapter"
    passes_input_through: ClassVar[bool] = False
    """Whether `forward` calls the sublayer exactly once, with x itself. Unused computation can then be skipped."""
    input_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of its config that hold names of inputs: a name, a list of names or None."""
    uses_context: ClassVar[bool] = False
    """Whether `forward` takes a third argument, the `Context` of the positions."""
    only_with: tuple[str, ...] = ()
    """The inputs that it acts with, as `only_with` of its table says it: for sequences without any of them, it is as if
    it were not there. Empty: it acts on all sequences."""
    site: Site
    """Where it acts. A class that is built with a width has a site of this width."""
    _state = AdapterState()
    _table = ""

    @abstractmethod
    def __init__(self, config: PartConfig, site: Site | int) -> None:
        super().__init__(config)
        self.site = site if isinstance(site, Site) else Site.of_width(site)

    def __call__(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], *context: Context) -> Tensor:
        """Run the adapter with the context that it uses, or only the sublayer if it is disabled or not needed."""
        if self.is_disabled or not self.is_needed:
            return sublayer(x)
        if self.uses_context and not context:
            context = (self._state.context_of(x),)
        mask = self.acts_on(x)
        if mask is not None:
            return _where(mask[..., None], super().__call__, x, sublayer, *context)
        out: Tensor = super().__call__(x, sublayer, *context)
        return out

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the adapter: `forward(self, x, sublayer)`, or `forward(self, x, sublayer, context)` if it uses it.

        `x` is the input of the sublayer, [b, t, `site.in_features`]. `sublayer` is the frozen sublayer, a function of
        tensors [b, t, `site.in_features`] to [b, t, `site.out_features`]. `context` is the `Context` of the positions:
        their inputs, and the media that they may attend to.

        Returns:
            The replacement for the sublayer's output, [b, t, `site.out_features`]. Neither x nor an output of the
            sublayer may be changed in place.
        """

    def acts_on(self, x: Tensor) -> Tensor | None:
        """Which positions are those of sequences that it acts on, [b, t] boolean. None: all.

        Elsewhere its output is not used, but what its sublayer computes. Only an adapter that changes something else
        than the input of the sublayer has to heed it, such as the keys of `Site.key_values`.

        Args:
            x: The input of the sublayer, [b, t, `site.in_features`].

        Raises:
            PartError: `only_with` does not work at this site, because its positions are not those of the batch.
        """
        return self._state.presence_mask(x, self.only_with) if self.only_with else None

    def required_inputs(self) -> Collection[str]:
        """Names of inputs that its config refers to: a model without one of them is refused.

        Default: those in `input_fields`.
        """
        given = [getattr(self.config, field) for field in self.input_fields]
        return [name for one in given for name in ((one,) if isinstance(one, str) else one or ())]

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The linear layer that computes what this adapter computes around a linear layer.

        Args:
            weight: Weight of the layer inside, [`site.out_features`, `site.in_features`]. That of the frozen layer, or
                what the adapters inside this one made of it.
            bias: Its bias [`site.out_features`]. None: it has none, and gets none.

        Returns:
            The weight and the bias, as new tensors of the same shapes.

        Raises:
            PartError: It is no linear map of its input, or no subclass says which one.
        """
        raise PartError(f'"{self.name}" cannot be merged: it does not implement `merged`')

    @property
    def is_disabled(self) -> bool:
        """Whether it is switched off for now, by `Magma.adapters_disabled`."""
        return self._table in self._state.disabled

    @property
    def is_needed(self) -> bool:
        """Whether the present batch has an input of `only_with`. Without `only_with`, every batch needs the adapter."""
        return not self.only_with or self._state.needs(self.only_with)

    def join(self, table: str, state: AdapterState, only_with: Sequence[str] = ()) -> None:
        """Share the state of a language model, as one of the adapters of a table."""
        self._table, self._state, self.only_with = table, state, tuple(only_with)

    keeps_input = RenamedMember("passes_input_through")


def _where(
    mask: Tensor,
    adapter: Callable[..., Tensor],
    x: Tensor,
    sublayer: Callable[[Tensor], Tensor],
    *context: Context,
) -> Tensor:
    """The adapter's output where the mask [b, t, 1] is True, and elsewhere what the sublayer returns for x itself.

    Both are of one call: the sublayer mixes no sequences, so it gets x in the sequences outside the mask.
    """
    kept: Tensor | None = None

    def keeping(h: Tensor) -> Tensor:
        nonlocal kept
        kept = sublayer(h if h is x else torch.where(mask, h, x))
        return kept

    changed = adapter(x, keeping, *context)
    return changed if kept is None else torch.where(mask, changed, kept)


def takes_site(part: type[Adapter]) -> bool:
    """Whether a class is built with its site, and not with an integer."""
    names = list(inspect.signature(part.__init__).parameters)
    return len(names) > 2 and names[2] == "site"


def adapter_argument(part: type[Adapter], site: Site) -> Site | int:
    """What a class is built with besides its config: the site, or its width.

    Raises:
        PartError: The class is built with one width, and the site has two.
    """
    if takes_site(part):
        return site
    if site.in_features != site.out_features:
        raise PartError(
            f'"{part.name}" at {site.path}: given a site of widths {site.in_features} to {site.out_features}; allowed '
            "for an adapter that is built with one width: equal widths"
        )
    return site.in_features


def make_adapter(make: Callable[..., Adapter], site: Site) -> Adapter:
    """Call a function that makes adapters: with the site if it requires an argument, otherwise without one."""
    required = [
        one
        for one in inspect.signature(make).parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    return make(site) if required else make()
