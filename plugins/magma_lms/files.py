"""Where a language model's weights and tokenizer are: a hub name, a folder, or a bundled one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from magma import PartError, hub_problem

BUNDLED = "bundled:"
WEIGHTS = "*.safetensors or pytorch_model*.bin"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def bundled() -> list[str]:
    """Names of the language models that come with this package."""
    return sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/config.json"))


def location(source: str) -> str:
    """A bundled name as its folder; everything else is for transformers."""
    return str(BUNDLED_FOLDER / source.removeprefix(BUNDLED)) if source.startswith(BUNDLED) else source


def is_local(source: str) -> bool:
    """Is this a folder, going by how it is written, or because there is one?"""
    path = Path(source)
    return path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or path.is_dir()


def missing(what: str, source: str | None, *files: str) -> list[str]:
    """What keeps `source` from being read, as far as the disk tells: a folder holds each of `files`."""
    if source is None:
        return []
    if source.startswith(BUNDLED):
        known = bundled()
        found = source.removeprefix(BUNDLED) in known
        return [] if found else [f"{what}: given {source!r}; bundled are {', '.join(known) or 'none'}"]
    if not is_local(source):
        return []
    path = Path(source)
    if not path.is_dir():
        return [f"{what}: given {source!r}, which is no folder"]
    return [
        f"{what}: {source} has no {wanted}"
        for wanted in files
        if not any(found for pattern in wanted.split(" or ") for found in path.glob(pattern))
    ]


def lacking(weights: str | None, tokenizer: str | None, *files: str) -> list[str]:
    """What keeps weights (a folder has each of `files`) and tokenizer from being had."""
    return [
        *missing("weights", weights, *files),
        *_not_at_hand("weights", weights, "config.json"),
        *missing("tokenizer", tokenizer),
        *_not_at_hand("tokenizer", tokenizer, "tokenizer_config.json"),
    ]


def _not_at_hand(what: str, source: str | None, file: str) -> list[str]:
    """A hub name that cannot be had."""
    if source is None or source.startswith(BUNDLED) or is_local(source):
        return []
    problem = hub_problem(source, file)
    return [f"{what}: {problem}"] if problem else []


def has_safetensors(source: str) -> bool:
    """Weights are read as safetensors, unless a folder or a cached hub name has only torch's own format."""
    folder = Path(location(source))
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source, "config.json")
        if not isinstance(found, str):
            return _hub_has_safetensors(source)
        folder = Path(found).parent
    return any(folder.glob("*.safetensors")) or not any(folder.glob("pytorch_model*.bin"))


def _hub_has_safetensors(name: str) -> bool:
    import huggingface_hub

    try:
        return any(file.endswith(".safetensors") for file in huggingface_hub.list_repo_files(name))
    except Exception:  # its HTTP library's own; whoever reads the weights says what is wrong
        return True


def read(what: str, source: str, load: Callable[..., Any], **how: Any) -> Any:
    """`load` a folder, or a hub name: from the cache, else from the hub."""
    if problems := missing(what, source):
        raise PartError(f"lm.{problems[0]}. {_allowed()}")
    where = location(source)
    try:
        if Path(where).is_dir():
            return load(where, **how)
        try:
            return load(where, local_files_only=True, **how)
        except OSError:
            if problem := hub_problem(where):  # transformers would ask for each file many times over
                raise OSError(problem) from None
        return load(where, **how)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise PartError(unreadable(what, source, error)) from error


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def unreadable(what: str, source: str, error: Exception) -> str:
    """What to say of weights or a tokenizer that are no such thing."""
    return f"lm.{what}: given {source!r}, which cannot be read: {first_line(error).rstrip('.')}. {_allowed()}"


def _allowed() -> str:
    here = " or ".join(BUNDLED + name for name in bundled()) or "a bundled name"
    return f"Allowed: a hub name, a folder in transformers' format (config.json, *.safetensors), or {here}"
