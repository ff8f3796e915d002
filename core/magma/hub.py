"""Files that a user names by a folder or by a hub name: are they here, or can they be had? Nothing is downloaded.

The hub is asked once for each name, without waiting long.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatch
from pathlib import Path

from .io import error_summary


def is_folder(source: str) -> bool:
    """Is a folder meant, going by how it is written, or because there is one? Else it is a hub name."""
    path = Path(source)
    return path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or path.is_dir()


def find_local_folder(source: str, *patterns: str) -> Path | None:
    """The folder on disk with a file of one of the `patterns`: `source` itself, or the cache's of a hub name."""
    folder: Path | None = Path(source)
    if not is_folder(source):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, "config.json")
        folder = Path(cached).parent if isinstance(cached, str) else None
    return folder if folder and any(found for pattern in patterns for found in folder.glob(pattern)) else None


def hub_has(name: str, *patterns: str) -> bool:
    """Does the hub list a file of one of the `patterns`? False, too, where it cannot be asked for the name."""
    import huggingface_hub

    if ask_hub(name):
        return False
    try:
        files = huggingface_hub.list_repo_files(name)
    except Exception:  # as below
        return False
    return any(fnmatch(file, pattern) for file in files for pattern in patterns)


def source_problems(source: str, *wanted: tuple[str, ...], cached: str = "config.json") -> list[str]:
    """What keeps a folder or a hub name from being read, in lines.

    A folder has, for each of `wanted`, a file of one of its patterns; of a hub name, `cached` is in the cache, or the
    hub has the name.
    """
    if not is_folder(source):
        problem = hub_problem(source, cached)
        return [problem] if problem else []
    if not Path(source).is_dir():
        return [f"given {source!r}, which is no folder"]
    return [f"{source} has no {' or '.join(any_of)}" for any_of in wanted if not find_local_folder(source, *any_of)]


def hub_problem(name: str, *files: str) -> str | None:
    """Why a hub repository cannot be had; None where one of its `files` is in the cache, or the hub has it."""
    from huggingface_hub import try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
        return None
    reason = ask_hub(name)
    if reason is None:
        return None
    return (
        f"{name} is not in the cache, and the hub says: {reason.rstrip('.')}. Where there is a network, "
        f"`hf download {name}` gets it; a folder or file of it is allowed too"
    )


@functools.cache
def ask_hub(name: str) -> str | None:
    """What the hub answers when asked for a repository that it cannot give; None: it has it."""
    import huggingface_hub

    try:
        huggingface_hub.model_info(name, timeout=10)
    except Exception as error:  # its HTTP library's own, which changes between releases
        return error_summary(error)
    return None
