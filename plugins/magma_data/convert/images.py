"""Reads, downloads and checks the images of data sets.

Images are never re-encoded: a shard contains the published bytes. Only SVG pictures are rendered to PNG (`svg`).
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
"""Pillow's name of each allowed format to its suffix. MPO is a JPEG with a second view."""
MAX_BYTES = 64 * 2**20
"""Maximum size of a download."""
NO_CONNECTION = "no connection"


class ImageError(Exception):
    """An image is dropped. The message is the reason in the report."""


class ImageSource(ABC):
    """Where to read an image from. Small, because it is sent to other processes."""

    __slots__ = ()

    @abstractmethod
    def read(self, timeout: float) -> bytes:
        """The bytes of the image. Raises `ImageError`. `timeout`, in seconds, is for downloads."""


@dataclass(frozen=True, slots=True)
class LocalImage(ImageSource):
    """The first existing file of several paths: archives of a data set may unpack into different folders."""

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
    """A member of an uncompressed tar."""

    tar: str
    offset: int
    size: int

    def read(self, timeout: float) -> bytes:
        with open(self.tar, "rb") as file:  # noqa: PTH123 - as above
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class WebImage(ImageSource):
    """An image at a URL: http, https or file."""

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
    """The body of the response. `timeout` limits the total time, not only each read."""
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
        if response.length:  # fewer bytes than announced
            raise ImageError("broken connection")
    return bytes(found)


def read_images(pictures: Iterable[ImageSource], timeout: float, threads: int) -> Iterator[bytes | ImageError]:
    """The bytes of the pictures, in order. Images on the web are downloaded in advance by threads."""
    remaining = iter(pictures)
    pending: deque[Future[bytes | ImageError] | ImageSource] = deque()
    with ThreadPoolExecutor(threads) as pool:

        def start(picture: ImageSource) -> Future[bytes | ImageError] | ImageSource:
            return pool.submit(_try_read, picture, timeout) if isinstance(picture, WebImage) else picture

        try:
            pending.extend(start(picture) for picture in islice(remaining, 2 * threads))
            while pending:
                first = pending.popleft()
                yield _try_read(first, timeout) if isinstance(first, ImageSource) else first.result()
                pending.extend(start(picture) for picture in islice(remaining, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _try_read(picture: ImageSource, timeout: float) -> bytes | ImageError:
    try:
        return picture.read(timeout)
    except ImageError as reason:
        return reason


def check_image(data: bytes, min_size: int = 0) -> str:
    """The suffix for these bytes. Raises `ImageError` if Pillow cannot decode them or a side is below `min_size`."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata of valid images
        try:
            with Image.open(io.BytesIO(data)) as image:
                kind, smallest = image.format, min(image.size)
                if kind not in FORMATS:
                    raise ImageError(f"format {kind}")
                image.verify()
            with Image.open(io.BytesIO(data)) as image:  # an image cannot be decoded after verify()
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
