"""Where weights and tokenizers are: a hub name, a folder, a GGUF file, an installed package, or a bundled model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from magma import (
    PartError,
    error_summary,
    find_in_package,
    find_local_folder,
    hub_has,
    hub_problem,
    is_folder,
    is_in_package,
    source_problems,
)

from .gguf import GGUF, missing_packages
from .quantization import Quantize, quantization_problem

BUNDLED = "bundled:"
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
BUNDLED_FOLDER = Path(__file__).parent / "bundled"
What = Literal["weights", "tokenizer"]


@dataclass(frozen=True)
class Source:
    """Where a language model and its tokenizer are, and how they are read: keys of `lm` in a recipe."""

    weights: str | None
    """A hub name, a folder, a GGUF file, `"package:NAME"` or `"bundled:NAME"`. None: random weights."""
    tokenizer: str | None = None
    """As `weights`. None: the tokenizer is beside the weights."""
    revision: str | None = None
    """Branch, tag or commit of the hub name in `weights`. None: its main branch."""
    cache_dir: str | None = None
    """Folder of downloaded files. None: that of huggingface_hub."""
    remote_code: bool = False
    """Whether Python code that comes with the weights or the tokenizer is run."""
    quantize: Quantize | None = None
    """The type in which the matrices of the blocks are held. None: the precision of the run."""

    def name(self, what: What) -> str | None:
        """The source of the weights, or of the tokenizer."""
        return self.weights if what == "weights" or self.tokenizer is None else self.tokenizer

    def key(self, what: What) -> What:
        """The key of `lm` that names this source."""
        return what if self.tokenizer is not None else "weights"

    def hub(self, what: What) -> Mapping[str, str]:
        """Options of downloads, as transformers names them; only those that are set."""
        revision = self.revision if self.name(what) == self.weights else None
        options = {"revision": revision, "cache_dir": self.cache_dir}
        return {name: value for name, value in options.items() if value is not None}


class Location(NamedTuple):
    """What `from_pretrained` of transformers reads."""

    name: str
    """A folder or a hub name."""
    gguf_file: str | None = None
    """Name of a GGUF file there."""


def locate(source: str) -> Location:
    """Find a source of weights or of a tokenizer. Raises `PartError` if a bundled model or a package is not there."""
    if source.startswith(BUNDLED):
        known = bundled_names()
        if source.removeprefix(BUNDLED) not in known:
            raise PartError(f"given {source!r}; allowed bundled models: {', '.join(known) or 'none'}")
        return Location(str(BUNDLED_FOLDER / source.removeprefix(BUNDLED)))
    if is_in_package(source):
        return locate(str(find_in_package(source, (GGUF,), "GGUF files")))
    if source.lower().endswith(GGUF):
        return Location(str(Path(source).parent), Path(source).name)
    return Location(source)


def bundled_names() -> list[str]:
    """Names of the language models in this package."""
    return sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/config.json"))


def resolve_source(source: str) -> str:
    """The folder or hub name of a source. Raises `PartError` as `locate` does."""
    return locate(source).name


def find_problems(source: Source, *files: tuple[str, ...]) -> list[str]:
    """Why a language model cannot be read on this machine, one line each.

    Args:
        source: Where it is.
        files: A folder of weights needs a file that matches one of each of these groups of patterns.
    """
    problems = _location_problems("weights", source, *files)
    if source.tokenizer is not None:
        problems += _location_problems("tokenizer", source, cached="tokenizer_config.json")
    if source.weights is None or problems:
        return problems
    where, gguf_file = locate(source.weights)
    if problem := _revision_problem(source, where):
        problems.append(f"revision: {problem}")
    if source.quantize is not None and (problem := quantization_problem(source.quantize, gguf_file)):
        problems.append(f"quantize: {problem}")
    return problems


def _revision_problem(source: Source, where: str) -> str | None:
    """Why the revision cannot be used for weights at `where`; None if it can, or is not given."""
    if source.revision is None or not is_folder(where):
        return None
    return f"given {source.revision!r}, but {where} is a folder; allowed: for hub names"


def _location_problems(what: What, source: Source, *files: tuple[str, ...], cached: str = "config.json") -> list[str]:
    name = source.name(what)
    if name is None:
        return []
    try:
        where, gguf_file = locate(name)
    except PartError as error:
        return [f"{what}: {error}"]
    if gguf_file is None:
        return [f"{what}: {problem}" for problem in source_problems(where, *files, cached=cached, **source.hub(what))]
    if is_folder(where):
        found = [] if Path(where, gguf_file).is_file() else [f"given {name!r}, which is not a file"]
    else:
        found = source_problems(where, cached=gguf_file, **source.hub(what))
    return [f"{what}: {problem}" for problem in [*found, *missing_packages()]]


def has_safetensors(source: str, **hub: str) -> bool:
    """Whether to read safetensors: yes, unless the source only has files in torch's format.

    Args:
        source: A folder or a hub name.
        hub: `revision` and `cache_dir` of a hub name, if they are set.
    """
    where = resolve_source(source)
    safe, other = WEIGHT_FILES
    if is_folder(where) or find_local_folder(where, *WEIGHT_FILES, **hub):
        return find_local_folder(where, safe, **hub) is not None or find_local_folder(where, other, **hub) is None
    listed = {name: value for name, value in hub.items() if name == "revision"}
    return hub_has(where, safe, **listed) or not hub_has(where, other, **listed)


def load_pretrained(what: What, source: Source, load: Callable[..., Any], **options: Any) -> Any:
    """Call a `from_pretrained` of transformers for the weights or the tokenizer; the cache is tried before the hub.

    Raises `PartError` for everything that a file or the hub can have wrong.
    """
    name = source.name(what)
    assert name is not None
    try:
        where, gguf_file = locate(name)
    except PartError as error:
        raise PartError(f"lm.{source.key(what)}: {error}") from None
    problems = [] if gguf_file is None else missing_packages()
    if what == "weights" and (problem := _revision_problem(source, where)):
        raise PartError(f"lm.revision: {problem}")
    if is_folder(where) and not (Path(where, gguf_file).is_file() if gguf_file else Path(where).is_dir()):
        problems.append(f"given {name!r}, which is not a {'file' if gguf_file else 'folder'}. {_describe_allowed()}")
    if problems:
        raise PartError(f"lm.{source.key(what)}: {problems[0]}")
    options |= {**source.hub(what), "trust_remote_code": source.remote_code}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        if Path(where).is_dir():
            return load(where, **options)
        try:
            return load(where, local_files_only=True, **options)
        except OSError:
            if problem := hub_problem(where, **source.hub(what)):  # transformers would request each file many times
                raise OSError(problem) from None
        return load(where, **options)
    except Exception as error:  # libraries raise errors of many types for damaged files
        raise PartError(unreadable_message(source.key(what), name, error)) from error


def describe_error(error: Exception) -> str:
    """A library's message; with the class of the error if the message is only a key, such as that of `KeyError`."""
    message = str(error)
    return f"{type(error).__name__}: {message}" if isinstance(error, LookupError) or not message else message


def unreadable_message(what: str, source: str, error: Exception) -> str:
    """The error message for weights or a tokenizer that cannot be read."""
    return (
        f"lm.{what}: given {source!r}, which cannot be read: {error_summary(error).rstrip('.')}. {_describe_allowed()}"
    )


def _describe_allowed() -> str:
    here = " or ".join(BUNDLED + name for name in bundled_names()) or "a bundled name"
    return (
        "Allowed: a hub name, a folder in transformers' format (config.json, *.safetensors), a GGUF file (*.gguf), "
        f"package:NAME, or {here}"
    )
