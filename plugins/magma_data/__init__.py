"""The data sources and tasks of MAGMA, and `magma data`, which converts published data sets to shards.

`formats` reads rows from files. `sources` has the data sources for training, `tasks` the evaluations, `metrics` their
scores. `convert` writes shards of published data sets. `digits` has small real data sets for quick runs.
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
    from .digits.same_number import SameNumber, SameNumberTask
    from .digits.spoken import SpokenDigits, SpokenDigitsTask
    from .digits.written import Digits, DigitsTask
    from .sources.captions import Captions
    from .sources.labelled import Labelled
    from .sources.plain_text import PlainText
    from .sources.question_answering import Vqa
    from .tasks.captioning import CocoCaptionsTask, NocapsTask
    from .tasks.emoji import EmojiTask
    from .tasks.entailment import SnliVeTask
    from .tasks.question_answering import GqaTask, OkVqaTask, VizWizTask, Vqa2Task
    from .tasks.text_ability import TextAbilityTask

    return [
        *(Captions, Labelled, PlainText, Vqa),
        *(Vqa2Task, OkVqaTask, VizWizTask, GqaTask, SnliVeTask),
        *(CocoCaptionsTask, NocapsTask, EmojiTask, TextAbilityTask),
        *(Digits, DigitsTask),
        *(SpokenDigits, SpokenDigitsTask),
        *(SameNumber, SameNumberTask),
    ]


@hookimpl
def magma_commands(cli: Program) -> None:
    """`magma data ...`."""
    from . import commands

    group = cli.group("data", "Convert published data sets to shards, check them and show their images.")
    for command in (commands.convert, commands.check, commands.show):
        group.command(command.__name__)(command)
