"""Where a language model's weights and tokenizer are: a hub name, a folder, or a bundled one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from magma import PartError, find_local_folder, hub_has, hub_problem, is_folder, source_problems

BUNDLED = "bundled:"
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
BUNDLED_FOLDER = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Names of the language models that come with this package."""
    return sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/config.json"))


def resolve_source(source: str) -> str:
    """A bundled name as its folder; everything else is for transformers."""
    return str(BUNDLED_FOLDER / source.removeprefix(BUNDLED)) if source.startswith(BUNDLED) else source


def find_problems(weights: str | None, tokenizer: str | None, *files: tuple[str, ...]) -> list[str]:
    """What keeps weights (a folder has one of each of `files`) and tokenizer from being had."""
    return [*_problems("weights", weights, *files), *_problems("tokenizer", tokenizer, cached="tokenizer_config.json")]


def _problems(what: str, source: str | None, *files: tuple[str, ...], cached: str = "config.json") -> list[str]:
    if source is None:
        return []
    if source.startswith(BUNDLED):
        known = bundled_names()
        found = source.removeprefix(BUNDLED) in known
        return [] if found else [f"{what}: given {source!r}; bundled are {', '.join(known) or 'none'}"]
    return [f"{what}: {problem}" for problem in source_problems(source, *files, cached=cached)]


def has_safetensors(source: str) -> bool:
    """Weights are read as safetensors, unless there are only some in torch's own format: here, else on the hub."""
    where = resolve_source(source)
    has = find_local_folder if is_folder(where) or find_local_folder(where, *WEIGHT_FILES) else hub_has
    safe, other = WEIGHT_FILES
    return bool(has(where, safe)) or not has(where, other)


def load_pretrained(what: str, source: str, load: Callable[..., Any], **options: Any) -> Any:
    """`load` a folder, or a hub name: from the cache, else from the hub."""
    where = resolve_source(source)
    if is_folder(where) and not Path(where).is_dir():
        raise PartError(f"lm.{_problems(what, source)[0]}. {_allowed()}")
    try:
        if Path(where).is_dir():
            return load(where, **options)
        try:
            return load(where, local_files_only=True, **options)
        except OSError:
            if problem := hub_problem(where):  # transformers would ask for each file many times over
                raise OSError(problem) from None
        return load(where, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise PartError(unreadable_message(what, source, error)) from error


def error_summary(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def unreadable_message(what: str, source: str, error: Exception) -> str:
    """What to say of weights or a tokenizer that are no such thing."""
    return f"lm.{what}: given {source!r}, which cannot be read: {error_summary(error).rstrip('.')}. {_allowed()}"


def _allowed() -> str:
    here = " or ".join(BUNDLED + name for name in bundled_names()) or "a bundled name"
    return f"Allowed: a hub name, a folder in transformers' format (config.json, *.safetensors), or {here}"
