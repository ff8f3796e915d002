"""Images as data sets hold them: where their bytes lie, how they are got, and whether they are worth keeping.

Bytes are never encoded anew: what a data set published is what a shard holds.
"""

from __future__ import annotations

import http.client
import io
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
"""Pillow's names of the formats that are kept, with the ending that each gets. MPO is a JPEG with a second view."""
MAX_BYTES = 64 * 2**20
"""A larger answer to a request is no photograph."""
NO_CONNECTION = "no connection"


class ImageError(Exception):
    """Why an image is left out; the message is the reason that is counted."""


class ImageSource(ABC):
    """Where an image's bytes lie: light, and sent to other processes."""

    __slots__ = ()

    @abstractmethod
    def read(self, timeout: float) -> bytes:
        """The bytes; `Unreadable` where there are none. `timeout` in seconds is for those that come from afar."""


@dataclass(frozen=True, slots=True)
class LocalImage(ImageSource):
    """The first of these files that exists: archives of one set unpack into different folders."""

    paths: tuple[str, ...]

    def read(self, timeout: float) -> bytes:
        for path in self.paths:
            try:
                with open(path, "rb") as file:  # noqa: PTH123 - half the time of Path for a million small files
                    return file.read()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise ImageError(f"unreadable file ({os.strerror(error.errno or 0)})") from error
        raise ImageError("missing image")


@dataclass(frozen=True, slots=True)
class TarImage(ImageSource):
    """A stretch of a tar that is not compressed."""

    tar: str
    offset: int
    size: int

    def read(self, timeout: float) -> bytes:
        with open(self.tar, "rb") as file:  # noqa: PTH123 - as above
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class WebImage(ImageSource):
    """An image of the web: http, https, or file."""

    url: str

    def read(self, timeout: float) -> bytes:
        scheme = self.url.partition(":")[0].lower()
        if scheme == "file":
            return LocalImage((urllib.request.url2pathname(urllib.parse.urlsplit(self.url).path),)).read(timeout)
        if scheme not in ("http", "https"):
            raise ImageError("bad URL")
        try:
            return _download(self.url, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            raise ImageError(f"HTTP {error.code}") from error
        except urllib.error.URLError as error:
            raise ImageError("timed out" if isinstance(error.reason, TimeoutError) else NO_CONNECTION) from error
        except TimeoutError as error:
            raise ImageError("timed out") from error
        except (http.client.HTTPException, OSError) as error:
            bad = isinstance(error, http.client.InvalidURL)
            raise ImageError("bad URL" if bad else "broken connection") from error
        except ValueError as error:
            raise ImageError("bad URL") from error


def _download(url: str, timeout: float) -> bytes:
    """The whole answer within `timeout`, however slowly a server drips."""
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": "Mozilla/5.0 (compatible; magma-multimodal)"})
    deadline = time.monotonic() + timeout
    with urllib.request.urlopen(request, timeout=timeout) as response:
        found = bytearray()
        while piece := response.read1(2**16):
            found += piece
            if len(found) > MAX_BYTES:
                raise ImageError("too many bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:  # the server promised more
            raise ImageError("broken connection")
    return bytes(found)


def read_images(pictures: Iterable[ImageSource], timeout: float, threads: int) -> Iterator[bytes | ImageError]:
    """Bytes in the pictures' order; those of the web by threads, a few more ahead than there are threads."""
    waiting = iter(pictures)
    ahead: deque[Future[bytes | ImageError] | ImageSource] = deque()
    with ThreadPoolExecutor(threads) as pool:

        def start(picture: ImageSource) -> Future[bytes | ImageError] | ImageSource:
            return pool.submit(_try_read, picture, timeout) if isinstance(picture, WebImage) else picture

        try:
            ahead.extend(start(picture) for picture in islice(waiting, 2 * threads))
            while ahead:
                first = ahead.popleft()
                yield _try_read(first, timeout) if isinstance(first, ImageSource) else first.result()
                ahead.extend(start(picture) for picture in islice(waiting, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _try_read(picture: ImageSource, timeout: float) -> bytes | ImageError:
    try:
        return picture.read(timeout)
    except ImageError as reason:
        return reason


def check_image(data: bytes, min_size: int = 0) -> str:
    """The ending for these bytes; `Unreadable` where Pillow cannot decode them or a side is below `min_size` pixels."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata of photographs that decode all the same
        try:
            with Image.open(io.BytesIO(data)) as image:
                kind, smallest = image.format, min(image.size)
                if kind not in FORMATS:
                    raise ImageError(f"format {kind}")
                image.verify()
            with Image.open(io.BytesIO(data)) as image:  # a verified image cannot be decoded any more
                image.load()
        except UnidentifiedImageError as error:
            raise ImageError("no image") from error
        except Image.DecompressionBombError as error:
            raise ImageError("too many pixels") from error
        except ImageError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            raise ImageError("corrupt image") from error
    if not smallest:
        raise ImageError("zero-size image")
    if smallest < min_size:
        raise ImageError(f"smaller than {min_size} pixels")
    return FORMATS[kind]
