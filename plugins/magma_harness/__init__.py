"""MAGMA folders as models of lmms-eval: `python -m lmms_eval --model magma --model_args pretrained=FOLDER`.

lmms-eval finds `manifest` through its entry-point group `lmms_eval.models`. It is an optional dependency, and is
imported only when the model is requested.
"""

from __future__ import annotations

from typing import Any

from magma import PluginError


def manifest() -> Any:
    """The model's name, and the class that lmms-eval imports when the model is chosen. Raises `PluginError`."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise missing_dependency(error) from error
    return ModelManifest(model_id="magma", simple_class_path="magma_harness.lmms.MagmaFolder")


def missing_dependency(error: ImportError) -> PluginError:
    """The error if lmms-eval, or one of its dependencies, cannot be imported."""
    return PluginError(
        f"evaluation with lmms-eval needs lmms-eval 0.7 or newer, which cannot be imported ({error}): "
        "pip install 'magma-multimodal[harness]'"
    )
