"""Reads tar shards in the WebDataset format, from files and URLs."""

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

from magma import InputError, error_summary

from .columns import Columns
from .content import decode_text, open_decompressed, parse_json
from .discovery import is_hidden, is_remote
from .order import StreamedRows
from .row import Row

_TEXT_SUFFIXES = frozenset({"json", "txt"})
"""Suffixes of members with text about the medium."""


class TarRows(StreamedRows):
    """Tar shards in the WebDataset format: members with the same name up to the first dot are a sample.

    KEY.json has the fields. KEY.txt is the caption if the fields have none (img2dataset writes both). The other member
    is the medium. A shard that cannot be opened raises `InputError`, because it is not an error of a single sample.
    """

    def samples(self, shard: str, skip: int) -> Iterator[Row]:
        """The samples of a shard after the first `skip` ones, of which only the headers of members are read."""
        sample, number, members_before = None, 0, 0
        broken = ""
        keys: set[str] = set()
        inside = False  # True while a member is read: if the shard ends then, its sample is incomplete
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
            if error.errno is None and not is_remote(shard):  # damaged compressed data
                broken = str(error)
            else:
                position = f"after sample {number} ({sample.key})" if sample else "at its beginning"
                raise InputError(f"{shard}: reading fails {position}: {error}") from error
        where = f"{shard} {sample.key if sample else 'at its beginning'}"
        if sample is not None and (not broken or (not inside and sample.is_complete(members_before))):
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
        _resolve_host(shard)
        from webdataset.gopen import gopen

        remote: IO[bytes] = gopen(shard)
        return remote
    except InputError:
        raise
    except Exception as error:  # of any library that opens URLs: huggingface_hub raises errors of its HTTP client
        raise InputError(f"{shard} cannot be opened: {error_summary(error)}") from error


def _resolve_host(url: str) -> None:
    """Resolve the server's address, because curl retries for a minute without a network. Raises `InputError`."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https", "hf") or urllib.request.getproxies():
        return
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co") if scheme == "hf" else f"{scheme}://{rest}"
    name = urllib.parse.urlsplit(host).hostname
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise InputError(f"{url} cannot be opened: no connection to {name} ({error.strerror})") from error


def _open_tar(file: IO[bytes], shard: str) -> tarfile.TarFile:
    """Open a tar: with seeking for local files, as a stream for remote and zst files."""
    if is_remote(shard):
        return tarfile.open(fileobj=file, mode="r|*")
    return tarfile.open(fileobj=file, mode="r|" if shard.lower().endswith(".zst") else "r:*")


def split_member(name: str) -> tuple[str, str]:
    """("a.b/c", "jpg") for "./a.b/c.JPG": the key of a sample ends at the first dot of the file name."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.with_name(stem)), ending.lower()


def iter_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, without hidden ones.

    Raises `tarfile.ReadError` if there is no end marker, or data after it.
    """
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # otherwise it keeps all members in memory
        if member.isfile() and not is_hidden(PurePosixPath(member.name)):
            yield member
    # tarfile takes a damaged header for the end; after the real end there is a second block of zeros.
    file = tar.fileobj
    if file is None or file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is truncated or damaged here")
    while block := file.read(2**16):
        if block.strip(tarfile.NUL):
            raise tarfile.ReadError(
                "data after the end marker; perhaps archives were concatenated, which `tar -i` unpacks"
            )


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a file
    content = file.read()
    if len(content) != member.size:
        raise tarfile.ReadError("it is truncated here")
    return content


@dataclass
class _Sample:
    """The consecutive members with the same key."""

    key: str
    repeated: bool
    """Whether members with this key were in an earlier sample."""
    members: dict[str, bytes] = field(default_factory=dict)
    duplicate: str | None = None
    """A suffix that occurs twice."""

    def add(self, ending: str, content: bytes) -> None:
        """Add a member."""
        if ending in self.members:
            self.duplicate = ending
        self.members[ending] = content

    def is_complete(self, usual: int) -> bool:
        """Whether it has as many members as the sample before it; for the first one, a text and a medium."""
        texts = self.members.keys() & _TEXT_SUFFIXES
        return len(self.members) >= usual if usual else bool(texts and self.members.keys() - texts)

    def row(self, shard: str, columns: Columns) -> Row:
        """The row of this sample; errors are reported by the row."""
        where = f"{shard} {self.key}"
        try:
            if self.duplicate is not None:
                raise InputError(
                    f"{where}: two members have the name {self.key}.{self.duplicate}; allowed: one of each name"
                )
            if self.repeated:
                shown = ", ".join(f"{self.key}.{ending}" for ending in self.members)
                raise InputError(
                    f"{where}: {shown}: other members with this key were in an earlier sample; allowed: all members of "
                    "a sample in a row, as with `tar --sort=name`, and a different key for each sample"
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
        """The suffix of the medium, or the field that has its path. Raises `InputError`."""
        if found := columns.check_given(where, [*self.members, *fields]) or columns.implied_by_input(self.members):
            return found
        media = [ending for ending in self.members if ending not in {*_TEXT_SUFFIXES, *columns.given.values()}]
        if len(media) > 1:
            raise InputError(
                f"{where}: several media ({', '.join(media)}); allowed: one, or one that is selected with "
                f"`columns = {{ {columns.input} = ... }}`"
            )
        return media[0] if media else None
