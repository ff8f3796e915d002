"""The table of guides/prefixes.md: `python docs/prefixes.py` writes it, and a test compares.

It has the projectors of transformers' models with the sizes of their default configurations.
"""

from __future__ import annotations

from pages import FOLDER, fill, table

PAGE = FOLDER / "guides/prefixes.md"
KEYS = ("factor", "window", "layers", "gated", "bias", "activation", "input_norm")
"""Keys that are shown, if they are not the default; the others are sizes."""


def projectors() -> str:
    """A row for each prefix with its keys, and the model types whose projector it computes."""
    import transformers
    from magma_prefixes import magma_parts
    from magma_prefixes.transformers_names import MODEL_TYPES, find_projector

    parts = {part.name: part for part in magma_parts()}
    found: dict[str, list[str]] = {}
    for name in MODEL_TYPES:
        projector = find_projector(transformers.AutoConfig.for_model(name))
        assert projector is not None, name
        keys = parts[projector.use].Config(**projector.options).model_dump(include=set(KEYS), exclude_defaults=True)
        shown = ", ".join(f"{key} = {_toml(keys[key])}" for key in KEYS if key in keys)
        found.setdefault(f"`{projector.use}`" + (f", `{shown}`" if shown else ""), []).append(f"`{name}`")
    return table(("prefix", "model types"), *((use, ", ".join(names)) for use, names in sorted(found.items())))


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def page(text: str) -> str:
    """The page with its table as the code has it now."""
    return fill(text, "prefixes.py", "projectors", projectors())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
