"""One model from several that were trained separately on the same frozen language model, without training."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from .checkpoint import (
    check_stored,
    describe_mismatches,
    frozen_hashes,
    mark_from_checkpoint,
    read_recipe,
    restore_tokenization,
    write,
)
from .errors import CheckpointError, InputError, bullet_list
from .io import atomic_folder
from .manifest import MANIFEST, SHOWN, TRAINED, Manifest, differing, dtype_of, find_checkpoint, read_manifest
from .model import Magma
from .names import name_problem
from .recipe.assemble import assemble
from .recipe.recipe import Recipe
from .recipe.tables import flat
from .tensors import read_tensors

Key = tuple[str, ...]
"""The path of a part in a recipe, and where a tensor is in this part."""


def compose(
    folders: Sequence[str | Path],
    out: str | Path,
    renamed: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    text_neutral: bool = False,
) -> Recipe:
    """Write one checkpoint from several, which handles the inputs of all of them.

    For a prompt with the inputs of one of them it computes what this one computes, bit by bit. Adapters at the same
    place wrap each other in the order of the folders. No weights of frozen parts are loaded.

    Args:
        folders: Checkpoints or folders of runs, called A, B, ... in `renamed`. They have the same frozen language
            model, and all their adapters have `only_with`. One is enough with `text_neutral`.
        out: The folder to write, which `load` opens.
        renamed: New names of inputs, such as {"B.scan": "second_scan"}.
        say: Called with each step, for progress messages.
        text_neutral: Adapters without `only_with` get the inputs of their model, so that they no longer act on prompts
            without media. Prompts with media are answered as before.

    Returns:
        The recipe of the new model.

    Raises:
        CheckpointError: The models cannot be combined; the message says why.
        InputError: A name in `renamed` is unknown, or the folder exists.
    """
    letters = string.ascii_uppercase
    fewest = 1 if text_neutral else 2
    if not fewest <= len(folders) <= len(letters):
        raise InputError(f"number of models: given {len(folders)}; allowed: {fewest} to {len(letters)}")
    if Path(out).exists():
        raise InputError(f"{out} exists already: choose another folder")
    parents = []
    for letter, folder in zip(letters, folders, strict=False):
        say(f"reading {folder}")
        parents.append(_Parent(letter, find_checkpoint(folder), text_neutral))
    _rename_inputs(parents, renamed or {})
    for parent in parents:
        _check_parts(parent)
    for parent in parents[1:]:
        _check_language_models(parents[0], parent)
    _check_inputs(parents)
    _rename_tables(parents)
    with atomic_folder(Path(out)) as aside:
        recipe = Recipe.load(_tables(parents, Path(out).name), folder=aside)
        say(f"writing {out}")
        _write(aside, recipe, parents)
    return recipe


class _Parent:
    """One of the models, and the names of its parts in the new one."""

    def __init__(self, letter: str, folder: Path, text_neutral: bool) -> None:
        self.letter, self.folder = letter, folder
        self.manifest: Manifest = read_manifest(folder)
        self.recipe = read_recipe(folder, self.manifest)
        self.inputs = {name: name for name in self.recipe.inputs}
        """The new name of each input."""
        self.adapters = {name: name for name in self.recipe.adapters}
        """The new name of each table."""
        others = tuple(self.recipe.inputs) if text_neutral else ()
        self.only_with = {name: table.only_with or others for name, table in self.recipe.adapters.items()}
        """The inputs that each table acts with, by their former names; none: it acts on every prompt."""

    def __str__(self) -> str:
        return f"{self.letter} ({self.folder})"

    @cached_property
    def tensors(self) -> dict[Key, _Stored]:
        """What is known of every tensor."""
        model = assemble(self.recipe, device="meta", dtype=dtype_of(self.manifest))
        frozen = frozen_hashes(self.manifest, model)
        hashes = {**frozen, **self.manifest.trained}
        names = _names(model)
        if lacking := [name for name in names.values() if name not in hashes]:
            raise CheckpointError(f"{self}: its manifest does not list {lacking[0]}")
        return {key: _Stored(name, hashes[name], name in self.manifest.trained) for key, name in names.items()}

    def of_part(self, path: str) -> dict[Key, str]:
        """SHA-256 of each tensor of an input, a table of adapters or the language model."""
        return {key[1:]: one.sha256 for key, one in self.tensors.items() if key[0] == path}

    def new_key(self, key: Key) -> Key:
        """The key of a tensor in the new model."""
        kind, _, name = key[0].partition(".")
        new = {"inputs": self.inputs, "adapters": self.adapters}.get(kind, {}).get(name)
        return key if new is None else (f"{kind}.{new}", *key[1:])

    def trained(self) -> dict[str, Tensor]:
        """The tensors of the checkpoint. Raises `CheckpointError` if they were modified."""
        path = self.folder / TRAINED
        found = read_tensors(path)[0]
        check_stored(path, self.manifest, found)
        return found


@dataclass(frozen=True)
class _Stored:
    """A tensor of a checkpoint."""

    name: str
    sha256: str
    is_trained: bool
    """Whether its values are in the checkpoint. Otherwise only its fingerprint is."""


def _names(model: Magma) -> dict[Key, str]:
    """The name of every tensor of a model. The model has no adapters afterwards.

    Tensors of the language model are found by their names without adapters, which may be inside modules around it.
    """
    found: dict[Key, str] = {}
    for name, module in model.input_modules().items():
        found.update({(f"inputs.{name}", inner): f"inputs.{name}.{inner}" for inner in module.state_dict()})
    paths: dict[int, list[str]] = {}
    for path, one in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(one), []).append(path)
    for table, adapters in model.lm.adapters.items():
        for number, adapter in enumerate(adapters):
            for i, path in enumerate(paths[id(adapter)]):
                inside = adapter.state_dict()
                found.update({(f"adapters.{table}", f"{number}.{i}", inner): f"{path}.{inner}" for inner in inside})
    wrapped = list(model.part_tensors("lm"))
    model.lm.remove_adapters()
    found.update({("lm", bare): name for bare, name in zip(model.part_tensors("lm"), wrapped, strict=True)})
    return found


# What may be combined


def _check_parts(parent: _Parent) -> None:
    if parent.recipe.head is not None:
        raise CheckpointError(f"{parent} has a classification head; allowed: models without [head], which write text")
    for name, inputs in parent.only_with.items():
        if not inputs:
            raise CheckpointError(
                f"{parent}: adapters.{name} acts on every prompt, so it would change the answers of the other models; "
                "allowed: adapters with `only_with`, or --text-neutral"
            )


def _check_language_models(one: _Parent, other: _Parent) -> None:
    if one.recipe.lm.use != other.recipe.lm.use:
        raise CheckpointError(
            f'{one} and {other} have different language models, "{one.recipe.lm.use}" and "{other.recipe.lm.use}"; '
            "allowed: the same frozen language model"
        )
    if one.manifest.dtype != other.manifest.dtype:
        raise CheckpointError(
            f"{one} is in {one.manifest.dtype} and {other} in {other.manifest.dtype}; allowed: the same precision"
        )
    before, after = ({"lm." + ".".join(key): sha for key, sha in of.of_part("lm").items()} for of in (one, other))
    if changed := differing(before, after):
        raise CheckpointError(
            f"{one} and {other} have different language models: {len(changed)} tensors differ, the first is "
            f"{changed[0]}; allowed: the same frozen language model"
        )
    settings, others = _settings(one), _settings(other)
    for key in {**settings, **others}:
        if settings.get(key) != others.get(key):
            raise CheckpointError(
                f"{one} and {other} differ in {key}: {settings.get(key)!r} and {others.get(key)!r}; allowed: equal "
                "settings"
            )


def _settings(parent: _Parent) -> dict[str, Any]:
    """What decides, besides its tensors, what the language model computes. Folders may have been moved in between."""
    fields = {
        f"lm.{key}": PurePath(value).name if isinstance(value, str) else value
        for key, value in flat(parent.recipe.model_dump(mode="json", exclude_none=True)["lm"])
    }
    text = {f"text.{key} of {MANIFEST}": value for key, value in parent.manifest.text.model_dump().items()}
    return {**fields, **text}


def _check_inputs(parents: Sequence[_Parent]) -> None:
    owners: dict[str, tuple[_Parent, str]] = {}
    for parent in parents:
        for former, name in parent.inputs.items():
            if name in owners:
                owner, theirs = owners[name]
                same = owner.of_part(f"inputs.{theirs}") == parent.of_part(f"inputs.{former}")
                raise CheckpointError(
                    f"{owner} and {parent} both have an input {name}, with {'equal' if same else 'different'} weights; "
                    f"allowed: one name for each, given as {parent.letter}.{former}=NAME in `renamed` or --rename"
                )
            owners[name] = parent, former


# Names in the new model


def _rename_inputs(parents: Sequence[_Parent], renamed: Mapping[str, str]) -> None:
    allowed = {f"{parent.letter}.{name}": parent for parent in parents for name in parent.recipe.inputs}
    for given, new in renamed.items():
        if given not in allowed:
            raise InputError(f"rename {given}: given {given!r}; allowed: {', '.join(allowed)}")
        if problem := name_problem(new):
            raise InputError(f"rename {given}: given {new!r}; allowed: {problem}")
        allowed[given].inputs[given.partition(".")[2]] = new


def _rename_tables(parents: Sequence[_Parent]) -> None:
    """A table whose name several models have is called after its inputs too."""
    count = Counter(name for parent in parents for name in parent.adapters)
    taken = {name for name, times in count.items() if times == 1}
    for parent in parents:
        for name in parent.adapters:
            if count[name] > 1:
                inputs = (parent.inputs[one] for one in parent.only_with[name])
                parent.adapters[name] = _free("_".join([name, *inputs]), taken)
                taken.add(parent.adapters[name])


def _free(name: str, taken: set[str]) -> str:
    return next(one for one in _numbered(name) if one not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in range(2, 2 + len(string.ascii_uppercase)))


# The new model


def _tables(parents: Sequence[_Parent], name: str) -> dict[str, Any]:
    """The recipe of the new model."""
    inputs: dict[str, Any] = {}
    adapters: dict[str, Any] = {}
    for parent in parents:
        tables = parent.recipe.model_dump(mode="json", exclude_none=True)
        inputs.update({parent.inputs[former]: table for former, table in tables["inputs"].items()})
        for former, table in tables["adapters"].items():
            only_with = [parent.inputs[one] for one in parent.only_with[former]]
            adapters[parent.adapters[former]] = {"at": former, **table, "only_with": only_with}
    lm = parents[0].recipe.model_dump(mode="json", exclude_none=True)["lm"]
    description = f"Composed of {', '.join(parent.recipe.name for parent in parents)}"
    return {"name": name, "description": description, "lm": lm, "inputs": inputs, "adapters": adapters}


def _write(folder: Path, recipe: Recipe, parents: Sequence[_Parent]) -> None:
    """Write the three files of the checkpoint."""
    first = parents[0].manifest
    names = _names(assemble(recipe, device="meta", dtype=dtype_of(first)))
    tensors: dict[str, Tensor] = {}
    frozen: dict[str, str] = {}
    for parent in parents:
        values = parent.trained()
        for key, one in parent.tensors.items():
            name = names[parent.new_key(key)]
            if one.is_trained:
                tensors[name] = values[one.name]
            else:
                frozen[name] = one.sha256
    model = assemble(recipe, device="meta", dtype=dtype_of(first))
    restore_tokenization(model.lm, folder, first)
    mark_from_checkpoint(model, tensors)
    if problems := describe_mismatches(model.stored_tensors(), tensors):
        raise CheckpointError(f"the tensors do not fit the recipe {recipe.name}:{bullet_list(problems, SHOWN)}")
    origins = [{"folder": str(parent.folder), "name": parent.recipe.name} for parent in parents]
    write(folder, model, recipe, frozen, tensors, composed_of=origins)
