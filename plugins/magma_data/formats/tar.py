"""Tar shards of the WebDataset convention, on disk or behind urls."""

from __future__ import annotations

import lzma
import os
import socket
import tarfile
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from magma import InputError

from .columns import Columns
from .content import decode_text, open_decompressed, parse_json
from .discovery import is_hidden, is_remote
from .order import StreamedRows
from .row import Row

_TEXT_SUFFIXES = frozenset({"json", "txt"})
"""Endings of members that say something about the medium."""


class TarRows(StreamedRows):
    """Tar shards of the WebDataset convention: members that share a name up to its first dot are a sample.

    KEY.json holds the fields, KEY.txt is the caption where they have none (img2dataset writes both), and the one other
    member is the medium. A shard that cannot be opened raises `InputError`: that is no matter of a sample, and the
    position is known.
    """

    def samples(self, shard: str, skip: int) -> Iterator[Row]:
        """The samples of a shard; of those that are skipped, only the members' heads are read."""
        sample, number, members_before = None, 0, 0
        broken = ""
        keys: set[str] = set()
        inside = False  # while a member is read: if the shard breaks off, its sample is not whole
        try:
            with closing(_open_shard(shard)) as file, _open_tar(file, shard) as tar:
                for member in iter_members(tar):
                    key, ending = split_member(member.name)
                    if sample is None or key != sample.key:
                        if sample is not None:
                            if number >= skip:
                                yield sample.row(shard, self.columns)
                            number, members_before = number + 1, len(sample.members)
                        sample = _Sample(key, repeated=key in keys)
                        keys.add(key)
                    inside = True
                    sample.add(ending, _read_member(tar, member) if number >= skip else b"")
                    inside = False
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            broken = str(error)
        except OSError as error:
            if error.errno is None and not is_remote(shard):  # a damaged compression
                broken = str(error)
            else:
                behind = f"after sample {number} ({sample.key})" if sample else "at its beginning"
                raise InputError(f"{shard}: it can no longer be read {behind}: {error}") from error
        where = f"{shard} {sample.key if sample else 'at its beginning'}"
        if sample is not None and (not broken or (not inside and sample.is_whole(members_before))):
            if number >= skip:
                yield sample.row(shard, self.columns)
            number, where = number + 1, f"{shard} after {sample.key}"
        if broken and number >= skip:
            yield Row(where, {}, problem=f"{where}: the rest of the shard cannot be read: {broken}")


def _open_shard(shard: str) -> IO[bytes]:
    try:
        if not is_remote(shard):
            file = Path(shard)
            return open_decompressed(file) if file.suffix.lower() == ".zst" else file.open("rb")
        _resolve(shard)
        from webdataset.gopen import gopen

        remote: IO[bytes] = gopen(shard)
        return remote
    except InputError:
        raise
    except Exception as error:  # of whatever library opens a url: huggingface_hub raises errors of its HTTP client
        raise InputError(f"{shard} cannot be opened: {error_summary(error)}") from error


def _resolve(url: str) -> None:
    """Ask for the server's address: curl tries for a minute where there is no network. Raises `InputError`."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https", "hf") or urllib.request.getproxies():
        return
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co") if scheme == "hf" else f"{scheme}://{rest}"
    name = urllib.parse.urlsplit(host).hostname
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise InputError(f"{url} cannot be opened: there is no connection to {name} ({error.strerror})") from error


def error_summary(error: Exception) -> str:
    """The first line of what an error says."""
    return f"{error}".strip().partition("\n")[0] or type(error).__name__


def _open_tar(file: IO[bytes], shard: str) -> tarfile.TarFile:
    """Members that are passed over are sought past in a file, and read past in a stream."""
    if is_remote(shard):
        return tarfile.open(fileobj=file, mode="r|*")
    return tarfile.open(fileobj=file, mode="r|" if shard.lower().endswith(".zst") else "r:*")


def split_member(name: str) -> tuple[str, str]:
    """("a.b/c", "jpg") of "./a.b/c.JPG": a sample's key ends at the first dot of the last part of the path."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.with_name(stem)), ending.lower()


def iter_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, as it is read, without hidden ones.

    Raises `tarfile.ReadError` where it ends without its end mark, or goes on after it.
    """
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        if member.isfile() and not is_hidden(PurePosixPath(member.name)):
            yield member
    # It takes a damaged head for the end; after the end proper there is a second block of zeros.
    file = tar.fileobj
    if file is None or file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off or damaged here")
    while block := file.read(2**16):
        if block.strip(tarfile.NUL):
            raise tarfile.ReadError("more follows its end mark, as where archives were joined; `tar -i` unpacks all")


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a file
    content = file.read()
    if len(content) != member.size:
        raise tarfile.ReadError("it is cut off here")
    return content


@dataclass
class _Sample:
    """The members of one key that stand one after the other."""

    key: str
    repeated: bool
    """Did members with this key stand before, apart from these?"""
    members: dict[str, bytes] = field(default_factory=dict)
    duplicate: str | None = None
    """An ending that two of them have."""

    def add(self, ending: str, content: bytes) -> None:
        """One more member."""
        if ending in self.members:
            self.duplicate = ending
        self.members[ending] = content

    def is_whole(self, usual: int) -> bool:
        """Does it seem complete: as many members as the sample before it, or for the first one a text and a medium?"""
        said = self.members.keys() & _TEXT_SUFFIXES
        return len(self.members) >= usual if usual else bool(said and self.members.keys() - said)

    def row(self, shard: str, columns: Columns) -> Row:
        """What it says."""
        where = f"{shard} {self.key}"
        try:
            if self.duplicate is not None:
                raise InputError(f"{where}: it has two members {self.key}.{self.duplicate}; allowed: one of each name")
            if self.repeated:
                shown = ", ".join(f"{self.key}.{ending}" for ending in self.members)
                raise InputError(
                    f"{where}: {shown}: members with this key stand before other samples too; allowed: all members of "
                    "a sample one after the other, as `tar --sort=name` packs them, and another key for each sample"
                )
            fields = parse_json(f"{where}.json", self.members["json"]) if "json" in self.members else {}
            if "txt" in self.members and not {"caption", "captions"} & fields.keys():
                fields["caption"] = decode_text(f"{where}.txt", self.members["txt"])
            medium = self._medium(where, fields, columns)
            for ending in columns.given.values():
                if ending in self.members and ending not in (medium, *fields):
                    fields[ending] = decode_text(f"{where}.{ending}", self.members[ending])
        except InputError as error:
            return Row(where, {}, problem=str(error))
        return Row(where, fields, data=None if medium is None else self.members.get(medium))

    def _medium(self, where: str, fields: Mapping[str, Any], columns: Columns) -> str | None:
        """The ending of the medium; a field's name where the medium is named in a field. Raises `InputError`."""
        if found := columns.check_given(where, [*self.members, *fields]) or columns.implied_by_input(self.members):
            return found
        media = [ending for ending in self.members if ending not in {*_TEXT_SUFFIXES, *columns.given.values()}]
        if len(media) > 1:
            raise InputError(
                f"{where}: it has several media ({', '.join(media)}); allowed: one, or the one that "
                f"`columns = {{ {columns.input} = ... }}` names"
            )
        return media[0] if media else None
