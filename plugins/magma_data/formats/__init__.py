"""How rows lie on disk or at URLs: one file per format, and the order in which a pass reads them.

`find(path, split)` says which files there are, `open_rows(path, split)` reads them: see `order.Rows` for the result.
"""

from .discovery import IMAGES, FileFormat, FoundFiles, find, is_hidden, is_url
from .reader import BUFFER, open_rows
from .tar import iter_members, split_member

__all__ = [
    "BUFFER",
    "IMAGES",
    "FileFormat",
    "FoundFiles",
    "find",
    "is_hidden",
    "is_url",
    "iter_members",
    "open_rows",
    "split_member",
]
