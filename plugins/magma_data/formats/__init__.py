"""Reads rows from files and URLs: one module per file format.

`find(path, split)` finds the files, `open_rows(path, split)` reads them. The result is an `order.Rows`, which also
determines the order of rows in an epoch.
"""

from .discovery import IMAGES, FileFormat, FoundFiles, find, is_hidden, is_url
from .reader import DEFAULT_BUFFER, open_rows
from .tar import iter_members, split_member

__all__ = [
    "DEFAULT_BUFFER",
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
