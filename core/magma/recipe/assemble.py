"""Build a model from a recipe, and a recipe from a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..adapter_tables import AdapterTable
from ..adapters import adapter_argument
from ..errors import PartError
from ..feature_cache.cache import FeatureCache
from ..inputs import Input
from ..interfaces import FrozenLM, Module
from ..model import Magma
from ..plugins.part_of import check_nested_parts, construct
from ..sites import Site
from ..system.device import check_device
from .overrides import locate
from .parts import all_part_tables
from .recipe import Recipe
from .schema import AdapterUse, Precision, Train, is_trained

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def assemble(
    source: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    device: torch.device | str | None = "cpu",
    dtype: torch.dtype | None = None,
    frozen_weights_only: bool = False,
    replaced: Collection[str] = (),
    absent: Collection[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Magma:
    """Build the model of a recipe. Equal recipes give equal weights; the global random state is restored.

    Args:
        source: A recipe: a file, the name of a bundled one, a dict or a `Recipe`.
        overrides: Changes such as "lm.layers=2".
        device: Device of the model. "meta": nothing is loaded. None: weights stay where they are loaded (those of files
            are memory-mapped), in their own precision.
        dtype: Precision. Default: that of `train.precision`; float32 without a `[train]` table.
        frozen_weights_only: Do not load the pretrained weights of trainable parts and of the parts in `replaced`: a
            checkpoint has them.
        replaced: Paths of frozen parts whose weights a checkpoint has.
        absent: Paths of parts that stay on meta.
        say: Called with each part that is built, for progress messages.

    Raises:
        RecipeError: There are mistakes in the recipe.
        PluginError: A part is not installed.
        PartError: Parts do not match, or weights cannot be loaded.
        InputError: This machine does not have the device.
    """
    recipe = source if isinstance(source, Recipe) else Recipe.load(source, overrides)
    if dtype is None:
        dtype = DTYPES[recipe.train.precision] if recipe.train else torch.float32
    device = None if device is None else check_device(device, meta=True)
    meta = device is not None and device.type == "meta"
    announced: set[str] = set()
    trained = recipe.trained_parts()

    def build(path: str, *context: Any) -> Any:
        part, config = recipe.part(path)
        if path not in announced:
            announced.add(path)
            say(f"building {path} ({part.name})")
        try:
            with torch.device("meta") if meta or path in absent else nullcontext():
                module = construct(part, config, *context)
            check_nested_parts(module)
            if not (meta or path in absent):
                paths = {name: f"{path}.{name}".rstrip(".") for name in module.all_parts()}
                stored = [name for name, whole in paths.items() if trained[whole] or whole in replaced]
                module.load_all_weights(stored if frozen_weights_only else ())
        except PartError as error:
            if str(error).startswith(path):
                raise
            raise PartError(f"{path}: {error}") from error
        return module

    def build_learner(path: str, *context: Any) -> Any:
        module = build(path, *context)
        if not trained[path]:
            module.freeze()
        return module

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        lm = build("lm")
        inputs = {}
        for name, table in recipe.inputs.items():
            encoder = build(f"inputs.{name}.encoder")
            sizes = encoder.dim, encoder.length, lm.embedding_dim
            prefix = build_learner(f"inputs.{name}.prefix", *sizes)
            cache = None if table.cache is None else FeatureCache(**table.cache.model_dump())
            inputs[name] = Input(encoder, prefix, table.trainable, table.batchnorm, cache)

        def adapter_table(path: str, table: AdapterUse) -> AdapterTable:
            part = recipe.part(path)[0]

            def make(site: Site) -> Any:
                return build_learner(path, adapter_argument(part, site))

            return AdapterTable(make, table.at, table.blocks, table.only_with or ())

        head = build_learner("head", lm.output_dim) if recipe.head else None
        adapters = {name: adapter_table(f"adapters.{name}", table) for name, table in recipe.adapters.items()}
        model = Magma(lm, inputs, adapters, head)
    left = [name for name, p in model.named_parameters() if p.is_meta and not meta]
    if left and not absent:
        raise PartError(f"load_weights() left {len(left)} tensors uninitialised, the first is {left[0]}")
    return model if device is None else model.to(device=None if absent else device, dtype=dtype)


def check_lengths(lm: FrozenLM, train: Train) -> None:
    """Check that a language model can be trained on rows of the lengths that `[train]` asks for.

    Raises:
        PartError: Examples have no maximum length, or rows cannot be packed.
    """
    if lm.context is None and train.max_length is None:
        raise PartError(
            "train.max_length: not given; required for this language model, which has no limit: one long text could "
            "fill the memory"
        )
    if train.packing and lm.packing_problem:
        raise PartError(
            f"train.packing: given {train.packing}; allowed for this language model: no packing, because "
            f"{lm.packing_problem}"
        )


def recipe_from_model(model: Magma, name: str = "model") -> Recipe:
    """The recipe of a model that was built from instances of parts."""

    def table(part: Module) -> dict[str, Any]:
        found = {"use": part.name, **part.config.model_dump(mode="json", exclude_none=True)}
        for name, inner in part.nested_parts().items():
            holder, key = locate(found, name)
            holder[key].update(table(inner))
            holder[key].pop("trainable", None)  # the module may have been frozen after it was built
            if inner.frozen and not part.frozen:
                holder[key]["trainable"] = False
        return found

    def learning(part: Module) -> dict[str, Any]:
        return {**table(part), **({"trainable": False} if part.frozen else {})}

    def placement(adapters: str) -> dict[str, Any]:
        given = model.adapter_tables.get(adapters)
        if given is None:
            return {}
        found = {"at": given.at, "blocks": given.blocks, "only_with": list(given.only_with) or None}
        return {key: value for key, value in found.items() if value is not None}

    return Recipe.load(
        {
            "name": name,
            "lm": table(model.lm),
            "inputs": {
                key: {
                    "encoder": table(input_module.encoder),
                    "prefix": learning(input_module.prefix),
                    "trainable": not input_module.encoder.frozen,
                    "batchnorm": input_module.batchnorm,
                    **({"cache": input_module.cache.settings()} if input_module.cache else {}),
                }
                for key, input_module in model.input_modules().items()
            },
            "adapters": {
                key: {**learning(adapters[0]), **placement(key)} for key, adapters in model.lm.adapters.items()
            },
            **({"head": learning(model.head)} if model.head else {}),
        }
    )


def learning_rates(recipe: Recipe) -> dict[str, float]:
    """Learning rate of every trained part, by path."""
    assert recipe.train is not None
    rates: dict[str, float] = {}
    trained = recipe.trained_parts()
    for name, input_module in recipe.inputs.items():
        if input_module.trainable:
            rates[f"inputs.{name}.encoder"] = input_module.lr or recipe.train.lr
    tables = {f"inputs.{name}.prefix": input_module.prefix for name, input_module in recipe.inputs.items()}
    tables |= {f"adapters.{name}": adapter for name, adapter in recipe.adapters.items()}
    tables |= {"head": recipe.head} if recipe.head else {}
    for path, table in tables.items():
        if is_trained(table):
            rates[path] = float(table.fields.get("lr", recipe.train.lr))
    for one in all_part_tables(recipe.model_dump()):
        if one.around and trained.get(one.path):
            rates[one.path] = float(one.table.get("lr", rates[one.around]))
    return rates
