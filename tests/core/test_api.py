"""What is public, and that the core stays what it is. `python tests/core/test_api.py` writes the snapshot anew."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import magma
from magma import testing
from magma.deprecation import RenamedMember

SNAPSHOT = Path(__file__).with_name("api.txt")
CORE = Path(magma.__file__).parent
MODALITIES = re.compile(r"(?<![a-z])(images?|pictures?|audio|clip(?!_grads)|gpt-?j)(?![a-z])", re.IGNORECASE)


def public() -> str:
    """Every public name with its signature; of classes, their public methods and fields too."""
    lines = [f"{old} = {new} (deprecated)" for module in (magma, testing) for old, new in module._RENAMED.items()]
    for name in magma.__all__:
        value = getattr(magma, name)
        lines.append(f"{name}{_signature(value)}")
        if inspect.isclass(value):
            annotations = vars(value).get("__annotations__", {})
            lines += [f"{name}.{key}: {kind}" for key, kind in annotations.items() if not key.startswith("_")]
            lines += [
                f"{name}.{key}{_signature(getattr(member, '__func__', member))}"
                for key, member in vars(value).items()
                if not key.startswith(("_", "model_")) and key not in annotations and _is_method(member)
            ]
            lines += [
                f"{name}.{key} = {name}.{member.new} (deprecated)"
                for key, member in vars(value).items()
                if isinstance(member, RenamedMember)
            ]
    return "\n".join(lines) + "\n"


def _is_method(member: Any) -> bool:
    return callable(member) or isinstance(member, classmethod | staticmethod | property)


def _signature(value: Any) -> str:
    if isinstance(value, property) or not callable(value):
        return ""
    if inspect.isclass(value) and "__init__" not in vars(value):
        return ""
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))
    except ValueError:
        return ""


def test_what_is_public_changes_on_purpose_alone() -> None:
    assert public() == SNAPSHOT.read_text(encoding="utf-8"), (
        "the public API has changed: if it was meant, `python tests/core/test_api.py` writes the snapshot anew; where "
        "an existing plugin would break, raise API_VERSION"
    )


def test_it_is_typed_and_all_there() -> None:
    assert (CORE / "py.typed").is_file()
    assert dir(magma) == magma.__all__
    assert len(set(magma.__all__)) == len(magma.__all__)
    assert magma.API_VERSION == 1


def test_core_names_no_modality_and_no_model_family() -> None:
    found = [
        f"{path.relative_to(CORE)}:{number}: {line.strip()}"
        for path in sorted(CORE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MODALITIES.search(line)
    ]
    assert found == []


if __name__ == "__main__":
    SNAPSHOT.write_text(public(), encoding="utf-8")
