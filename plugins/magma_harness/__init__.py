"""MAGMA folders as models of lmms-eval: `python -m lmms_eval --model magma --model_args pretrained=FOLDER`.

lmms-eval finds `manifest` through its own entry-point group, `lmms_eval.models`. It is no dependency of MAGMA: nothing
here imports it before someone asks for the model.
"""

from __future__ import annotations

from typing import Any

from magma import PluginError


def manifest() -> Any:
    """What lmms-eval registers: the model's name, and the class to import once it is chosen."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise missing_dependency(error) from error
    return ModelManifest(model_id="magma", simple_class_path="magma_harness.lmms.MagmaFolder")


def missing_dependency(error: ImportError) -> PluginError:
    """lmms-eval, or something that it needs, cannot be imported."""
    return PluginError(
        f"lmms-eval 0.7 or newer is needed to score a folder with it, and cannot be imported ({error}): "
        "pip install 'magma-multimodal[harness]'"
    )
