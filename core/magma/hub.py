"""Files that are named by a folder or a hub name: are they present, or can they be downloaded? Nothing is downloaded.

The hub is asked once for each name, with a short timeout.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .io import error_summary


def is_folder(source: str) -> bool:
    """Whether a name means a folder: by its form, or because it exists on disk. Otherwise it is a hub name."""
    path = Path(source)
    return path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or path.exists()


def find_local_folder(
    source: str, *patterns: str, revision: str | None = None, cache_dir: str | None = None
) -> Path | None:
    """Find a folder on disk.

    Args:
        source: A folder or a hub name.
        patterns: Glob patterns; the folder has to contain a file that matches one of them.
        revision: Branch, tag or commit of a hub name. Default: its main branch.
        cache_dir: Folder of downloaded files. Default: that of huggingface_hub.

    Returns:
        `source` itself, or the cached folder of a hub name; None if there is no such folder or file.
    """
    folder: Path | None = Path(source)
    if not is_folder(source):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, "config.json", **_given(cache_dir=cache_dir, revision=revision))
        folder = Path(cached).parent if isinstance(cached, str) else None
    return folder if folder and any(found for pattern in patterns for found in folder.glob(pattern)) else None


def hub_has(name: str, *patterns: str, revision: str | None = None) -> bool:
    """Whether the hub lists a file that matches one of the `patterns`. False if the hub cannot be reached."""
    import huggingface_hub

    if ask_hub(name, revision):
        return False
    try:
        files = huggingface_hub.list_repo_files(name, **_given(revision=revision))
    except Exception:  # as below
        return False
    return any(fnmatch(file, pattern) for file in files for pattern in patterns)


def source_problems(
    source: str,
    *wanted: tuple[str, ...],
    cached: str = "config.json",
    revision: str | None = None,
    cache_dir: str | None = None,
) -> list[str]:
    """Why a folder or a hub name cannot be read.

    Args:
        source: A folder or a hub name.
        wanted: Groups of glob patterns. A folder needs a file that matches a pattern of each group.
        cached: A hub name needs this file in the cache, or the hub has to know the name.
        revision: Branch, tag or commit of a hub name. Default: its main branch.
        cache_dir: Folder of downloaded files. Default: that of huggingface_hub.

    Returns:
        One line for each problem.
    """
    if not is_folder(source):
        problem = hub_problem(source, cached, revision=revision, cache_dir=cache_dir)
        return [problem] if problem else []
    if not Path(source).is_dir():
        return [f"given {source!r}, which is not a folder"]
    return [f"{source} has no {' or '.join(any_of)}" for any_of in wanted if not find_local_folder(source, *any_of)]


def hub_problem(name: str, *files: str, revision: str | None = None, cache_dir: str | None = None) -> str | None:
    """Why a hub repository is not available; None if one of its `files` is in the cache or the hub has it."""
    from huggingface_hub import try_to_load_from_cache

    cached = (try_to_load_from_cache(name, file, **_given(cache_dir=cache_dir, revision=revision)) for file in files)
    if any(isinstance(path, str) for path in cached):
        return None
    reason = ask_hub(name, revision)
    if reason is None:
        return None
    download = f"hf download {name}" if revision is None else f"hf download {name} --revision {revision}"
    return (
        f"{name} is not in the cache, and the hub reports: {reason.rstrip('.')}. Run `{download}` on a "
        "machine with a network, or give a local folder or file"
    )


def _given(**options: str | None) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


@functools.cache
def ask_hub(name: str, revision: str | None = None) -> str | None:
    """The hub's error message for a repository, or one revision of it; None if the hub has it."""
    import huggingface_hub

    try:
        huggingface_hub.model_info(name, timeout=10, **_given(revision=revision))
    except Exception as error:  # errors of its HTTP library, which changes between releases
        return error_summary(error)
    return None
