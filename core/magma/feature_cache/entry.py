"""One entry of the cache: the features of one medium as bytes, with a checksum.

Axes: n features, e encoder width.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

MAGIC = b"MAGMAFC1"
_DIGEST = 32
HEADER = len(MAGIC) + 8 + _DIGEST
"""Bytes before the payload: the format, the length of the payload, and the SHA-256 of key and payload."""


@dataclass(frozen=True)
class Entry:
    """The features of one medium."""

    values: Tensor
    """[n, e], on the CPU, in the precision in which they were computed."""
    length: int | None
    """The number of real features, as the encoder gives it. None: it gives no lengths."""
    num_features: int
    """What the encoder's `num_features` gives for the prepared item."""
    shape: tuple[int, ...]
    """Sizes of the tensors of the prepared item, as `sizes_of` gives them."""
    strides: tuple[int, ...] = ()
    """Strides of the features [b, n, e] of the batch. Empty: they are contiguous."""


def to_bytes(key: str, entry: Entry) -> bytes:
    """The file of an entry. The checksum covers the key too: an entry under another name is not valid."""
    facts = {
        "length": entry.length,
        "num_features": entry.num_features,
        "shape": entry.shape,
        "strides": entry.strides,
    }
    payload = save({"values": entry.values.contiguous()}, {"facts": json.dumps(facts)})
    return MAGIC + len(payload).to_bytes(8, "little") + _digest(key, payload) + payload


def payload_length(header: bytes) -> int | None:
    """The length of the payload after this header; None if it is not the header of an entry."""
    if len(header) != HEADER or not header.startswith(MAGIC):
        return None
    return int.from_bytes(header[len(MAGIC) : len(MAGIC) + 8], "little")


def from_bytes(key: str, header: bytes, payload: bytes) -> Entry | None:
    """The entry, or None if a single bit of its file or its name was changed."""
    if header[-_DIGEST:] != _digest(key, payload):
        return None
    size = int.from_bytes(payload[:8], "little")
    facts: dict[str, Any] = json.loads(json.loads(payload[8 : 8 + size])["__metadata__"]["facts"])
    return Entry(
        load(payload)["values"],
        facts["length"],
        facts["num_features"],
        tuple(facts["shape"]),
        tuple(facts["strides"]),
    )


def _digest(key: str, payload: bytes) -> bytes:
    found = hashlib.sha256(key.encode())
    found.update(payload)
    return found.digest()
