"""Adapters: small trained modules around the sublayers and linear layers of a frozen language model.

`bottleneck.py` has the sequential and the parallel bottleneck adapters of the paper (equations 1 and 2), `lora.py` LoRA
and its variants, `ia3.py` (IA)^3, `prefix_tuning.py` learned keys and values, `gated_cross_attention.py` the
cross-attention layers of Flamingo, `visual_expert.py` the projections of CogVLM for media positions. The modules
`peft_*` read and write files of the library peft, for `magma export peft` and `magma import peft`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from magma import hookimpl

if TYPE_CHECKING:
    from magma import Part, Program


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package. They are imported here because they import torch, which is slow."""
    from .bottleneck import Parallel, Sequential
    from .gated_cross_attention import GatedCrossAttention
    from .ia3 import IA3
    from .lora import LoRA
    from .prefix_tuning import PrefixTuning
    from .visual_expert import VisualExpert

    return [Sequential, Parallel, LoRA, IA3, GatedCrossAttention, VisualExpert, PrefixTuning]


@hookimpl
def magma_commands(cli: Program) -> None:
    """`magma export peft` and `magma import peft`."""
    from . import commands

    cli.group("export").command("peft")(commands.export_peft)
    cli.group("import", "Read models of other formats.").command("peft")(commands.import_peft)
