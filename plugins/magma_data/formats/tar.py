"""Tar shards of the WebDataset convention, on disk or behind urls."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO

from magma import InputError

from ..passes import Row, Streamed
from .content import decoded, parsed
from .discovery import is_url


class Tars(Streamed):
    """Tar shards of the WebDataset convention: members that share a name up to its first dot are a sample.

    KEY.json holds the fields, KEY.txt is the caption where they have none (img2dataset writes both), and the one other
    member is the medium. A shard that cannot be opened raises `InputError`: that is no matter of a sample, and the
    position is known.
    """

    def samples(self, shard: str, skip: int) -> Iterator[Row]:
        """The samples of a shard; of those that are skipped, nothing but the members' heads is looked at."""
        key: str | None = None
        number, broken = 0, None
        members: dict[str, bytes] = {}
        try:
            with closing(_opened(shard)) as file, _tar(file, shard) as tar:
                for member in _members(tar):
                    name = PurePosixPath(member.name)
                    stem, _, ending = name.name.partition(".")
                    found = str(name.with_name(stem))
                    if found != key:
                        if key is not None and number >= skip:
                            yield _sample(shard, key, members)
                        number += key is not None
                        key, members = found, {}
                    if number >= skip:
                        members[ending.lower()] = _content(tar, member)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            broken = str(error)
        except OSError as error:
            raise InputError(f"{shard}: it can no longer be read behind sample {number} ({key}): {error}") from error
        if broken is not None and number >= skip:
            where = f"{shard} {key or 'at its beginning'}"
            yield Row(where, {}, problem=f"{where}: the rest of the shard cannot be read: {broken}")
        elif key is not None and number >= skip:
            yield _sample(shard, key, members)


def _opened(shard: str) -> IO[bytes]:
    try:
        if not is_url(shard):
            return Path(shard).open("rb")
        from webdataset.gopen import gopen

        opened: IO[bytes] = gopen(shard)
        return opened
    except (OSError, ValueError) as error:
        raise InputError(f"{shard} cannot be opened: {error}") from error


def _tar(file: IO[bytes], shard: str) -> tarfile.TarFile:
    """Members that are passed over are sought past in a file, and read past in a stream."""
    return tarfile.open(fileobj=file, mode="r|*") if is_url(shard) else tarfile.open(fileobj=file, mode="r:*")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, as it is read. Raises `tarfile.ReadError` where it ends without its end mark."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        if member.isfile():
            yield member
    # It takes a damaged head for the end; behind the end proper there is a second block of zeros.
    if tar.fileobj is None or tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off or damaged here")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None  # a file
    content = opened.read()
    if len(content) != member.size:
        raise tarfile.ReadError("it is cut off here")
    return content


def _sample(shard: str, key: str, members: Mapping[str, bytes]) -> Row:
    where = f"{shard} {key}"
    media = [ending for ending in members if ending not in ("json", "txt")]
    try:
        if len(media) > 1:
            raise InputError(f"{where}: it has several media ({', '.join(media)}); allowed: one")
        fields = parsed(f"{where}.json", members["json"]) if "json" in members else {}
        if "txt" in members and not {"caption", "captions"} & fields.keys():
            fields["caption"] = decoded(f"{where}.txt", members["txt"])
    except InputError as error:
        return Row(where, {}, problem=str(error))
    return Row(where, fields, data=members[media[0]] if media else None)
