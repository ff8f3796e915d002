"""Create a package for a new plugin: `magma plugin new`."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from ..errors import PluginError
from ..io import atomic_folder

TEMPLATES = Path(__file__).with_name("templates")
KINDS = tuple(sorted(path.stem for path in TEMPLATES.glob("*.py") if "_" not in path.stem))
"""Kinds of parts that have a template."""
SITES = ("sublayer", *sorted(path.stem.partition("_")[2] for path in TEMPLATES.glob("adapter_*.py")))
"""Where the adapter of a template acts: by default around attention or feed-forward."""
_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{about}"
requires-python = ">=3.11"
dependencies = ["magma-multimodal"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.magma]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""
_TEST = """\
from {module} import {part}

from magma import testing

test_{name} = testing.conformance({part})
"""
_README = """\
# {distribution}

{about} for MAGMA, any modality into a frozen language model.

```
pip install -e '.[test]'
magma plugin check {name}
pytest
```

In a recipe:

```toml
{usage}
```
"""
_ABOUT = {
    "adapter": "An adapter",
    "data": "A data source",
    "encoder": "An encoder",
    "head": "A head",
    "lm": "A language model",
    "prefix": "A prefix",
    "task": "An evaluation task",
}
_USAGE = {
    "adapter": '[adapters.mlp]\nuse = "{name}"',
    "adapter_block": '[adapters.{name}]\nuse = "{name}"\nat = "block"\nblocks = "every 4"',
    "adapter_linears": '[adapters.{name}]\nuse = "{name}"\nat = "linears"',
    "data": '[[data.train]]\nuse = "{name}"',
    "encoder": '[inputs.{name}]\nencoder = {{ use = "{name}" }}\nprefix = {{ use = "linear" }}',
    "head": '[head]\nuse = "{name}"\nclasses = ["yes", "no"]',
    "lm": '[lm]\nuse = "{name}"',
    "prefix": '[inputs.NAME]\nprefix = {{ use = "{name}" }}',
    "task": '[[tasks]]\nuse = "{name}"',
}


def new_plugin(name: str, kind: str, out: Path, at: str = SITES[0]) -> Path:
    """Create a package `magma-NAME` with one working part and its tests.

    Args:
        name: Name of the part in recipes.
        kind: Kind of the part.
        out: Folder in which the package is created.
        at: Where an adapter acts: "sublayer" (attention or feed-forward), "block" or "linears".

    Returns:
        The folder of the package.

    Raises:
        PluginError: The name is not a word, the kind or the site is unknown, or the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise PluginError(f"plugin new: given the name {name!r}; allowed: a word of a to z, 0 to 9 and _")
    if kind not in KINDS:
        raise PluginError(f"plugin new: given --kind {kind}; allowed: {', '.join(KINDS)}")
    if at not in SITES or (at != SITES[0] and kind != "adapter"):
        raise PluginError(f"plugin new: given --at {at}; allowed: {', '.join(SITES)}, for adapters")
    template = kind if at == SITES[0] else f"{kind}_{at}"
    folder = out / f"magma-{name.replace('_', '-')}"
    if folder.exists():
        raise PluginError(f"plugin new: {folder} exists already")
    part = "".join(word.capitalize() for word in name.split("_") if word)
    words = {
        "name": name,
        "module": f"magma_{name}",
        "distribution": folder.name,
        "part": part,
        "about": _ABOUT[kind],
    }
    code = (TEMPLATES / f"{template}.py").read_text(encoding="utf-8").replace("NewPart", part).replace("newname", name)
    files = {
        "pyproject.toml": _PROJECT.format(**words),
        f"{words['module']}.py": code,
        f"test_{words['module']}.py": _TEST.format(**words),
        "README.md": _README.format(**words, usage=_USAGE[template].format(**words)),
    }
    with atomic_folder(folder) as partial:
        for file, text in files.items():
            (partial / file).write_text(text, encoding="utf-8")
    return folder
