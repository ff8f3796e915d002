"""The data sets that can be converted, by name."""

from __future__ import annotations

from magma import InputError, did_you_mean

from .base_set import OfficialSet
from .caption_sets import CocoCaptions, HatefulMemes, LocalizedNarratives, Nocaps, VisualGenome
from .emoji.emoji_set import Emoji
from .question_sets import Gqa, OkVqa, SnliVe, VizWiz, Vqa2
from .web_crawls import Cc3m, Cc12m, Laion, Wit

SETS: dict[str, type[OfficialSet]] = {
    one.name: one
    for one in (
        *(Cc3m, Cc12m, Laion, Wit),
        *(VisualGenome, LocalizedNarratives, CocoCaptions, Nocaps, HatefulMemes),
        *(Vqa2, OkVqa, Gqa, VizWiz),
        *(SnliVe, Emoji),
    )
}


def find_set(name: str) -> type[OfficialSet]:
    """The data set with this name. Raises `InputError`."""
    if name not in SETS:
        raise InputError(f'unknown data set "{name}".{did_you_mean(name, SETS)} Allowed: {", ".join(SETS)}')
    return SETS[name]
