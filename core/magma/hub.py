"""Can something be had from the hub? Asked once, without waiting long, before a run begins."""

from __future__ import annotations

import functools


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
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None
