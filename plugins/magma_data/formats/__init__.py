"""How rows lie on disk or at URLs: one file per format, and the order in which a pass reads them.

`find(path, split)` says which files there are, `open_rows(path, split)` reads them: see `order.Rows` for the result.
"""

from .discovery import IMAGES, Found, Layout, find, is_hidden, is_url
from .reader import BUFFER, open_rows
from .tar import members, split_member

__all__ = ["BUFFER", "IMAGES", "Found", "Layout", "find", "is_hidden", "is_url", "members", "open_rows", "split_member"]
