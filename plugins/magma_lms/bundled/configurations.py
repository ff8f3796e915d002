"""Configurations of published language models, with which their recipes are planned without the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from magma import find_local_folder, is_folder

CONFIGURATIONS = Path(__file__).parent / "configs"
"""`OWNER/NAME.json` is the `config.json` of the hub name OWNER/NAME."""


def planned_configuration(source: str, **hub: str) -> Path | None:
    """The bundled configuration of a hub name, if the model is only planned.

    Args:
        source: A hub name or a folder.
        hub: `revision` and `cache_dir` of a hub name, if they are set. A revision is never bundled.

    Returns:
        The file; None if there is none, if a folder or the hub's cache has the real one, or if weights will be loaded,
        which the real one describes.
    """
    path = CONFIGURATIONS / f"{source}.json"
    only_planned = torch.get_default_device().type == "meta"
    if not (path.is_file() and only_planned) or "revision" in hub or is_folder(source):
        return None  # `source` is a hub name from here on: no other one has a bundled configuration
    return None if find_local_folder(source, "config.json", **hub) else path
