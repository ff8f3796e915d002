"""Every layout of every published data set, as a small case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from emoji_files import emoji
from official_files import (
    Case,
    cc3m,
    cc3m_fetched,
    cc12m,
    cc12m_fetched,
    coco_2017,
    coco_official,
    gqa,
    hateful_memes,
    karpathy,
    karpathy_restval_apart,
    karpathy_without_restval,
    laion,
    laion_fetched,
    localized_narratives,
    nocaps,
    okvqa,
    snli_ve,
    visual_genome,
    vizwiz,
    vqa2,
    wit,
)

CASES: list[tuple[str, Callable[[Path], Case]]] = [
    ("cc3m", cc3m),
    ("cc3m", cc3m_fetched),
    ("cc12m", cc12m),
    ("cc12m", cc12m_fetched),
    ("laion", laion),
    ("laion", laion_fetched),
    ("wit", wit),
    ("visual_genome", visual_genome),
    ("localized_narratives", localized_narratives),
    ("coco_captions", coco_official),
    ("coco_captions", coco_2017),
    ("coco_captions", karpathy),
    ("coco_captions", karpathy_restval_apart),
    ("coco_captions", karpathy_without_restval),
    ("nocaps", nocaps),
    ("hateful_memes", hateful_memes),
    ("vqa2", vqa2),
    ("okvqa", okvqa),
    ("gqa", gqa),
    ("vizwiz", vizwiz),
    ("snli_ve", snli_ve),
    ("emoji", emoji),
]
