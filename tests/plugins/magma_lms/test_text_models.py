"""The text model of checkpoints for several modalities."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import vision_language
from magma_lms.loading import build_model, load_model, read_architecture
from magma_lms.weights import Source

from magma import PartError

TEXT_MODELS = {
    "aria": "AriaTextForCausalLM",
    "aya_vision": "Cohere2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "idefics2": "MistralForCausalLM",
    "idefics3": "LlamaForCausalLM",
    "internvl": "Qwen2ForCausalLM",
    "llava": "LlamaForCausalLM",
    "llava_next": "LlamaForCausalLM",
    "llava_onevision": "Qwen2ForCausalLM",
    "mistral3": "MistralForCausalLM",
    "mllama": "MllamaForCausalLM",
    "ovis2": "Qwen2ForCausalLM",
    "paligemma": "GemmaForCausalLM",
    "qwen2_5_vl": "TextModelWithHead",
    "qwen2_audio": "Qwen2ForCausalLM",
    "qwen2_vl": "TextModelWithHead",
    "qwen3_vl": "TextModelWithHead",
    "smolvlm": "LlamaForCausalLM",
    "voxtral": "LlamaForCausalLM",
}
"""The class that is found, by the type of the checkpoint. The library has no text model for three of them."""
INSEPARABLE = {
    "florence2": "it has 0 modules BartDecoderWrapper and one head",
    "kosmos-2": "transformers has no model for its text configuration, kosmos_2_text_model",
}
TOKENS = torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", TEXT_MODELS)
def test_a_text_model_gives_the_logits_of_the_whole_model(tmp_path: Path, model_type: str) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    whole = vision_language.build(model_type)
    whole.save_pretrained(tmp_path)
    source = Source(str(tmp_path))
    architecture = read_architecture(source)
    model = load_model(source, architecture)
    assert type(model).__name__ == TEXT_MODELS[model_type]
    difference = (model(input_ids=TOKENS).logits - whole(input_ids=TOKENS).logits).abs().max()
    assert difference <= 1e-5 * whole(input_ids=TOKENS).logits.abs().max()
    with torch.device("meta"):
        planned = build_model(source, read_architecture(source))
    assert {name: p.shape for name, p in planned.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    if type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model.save_pretrained(tmp_path / "text")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
        assert torch.equal(again(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())


def test_a_text_model_inside_the_whole_model_is_used_as_it_is(tmp_path: Path) -> None:
    whole = vision_language.build("blip-2")  # it does not run without an image
    whole.save_pretrained(tmp_path)
    source = Source(str(tmp_path))
    model = load_model(source, read_architecture(source))
    assert type(model).__name__ == "OPTForCausalLM"
    assert torch.equal(model(input_ids=TOKENS).logits, whole.language_model(input_ids=TOKENS).logits)


@pytest.mark.parametrize("model_type", INSEPARABLE)
def test_a_text_model_that_cannot_be_separated(tmp_path: Path, model_type: str) -> None:
    vision_language.build(model_type).save_pretrained(tmp_path)
    source = Source(str(tmp_path))
    message = f"the text model of a {model_type} checkpoint cannot be separated: {INSEPARABLE[model_type]}"
    with pytest.raises(PartError, match=rf"lm\.weights: {re.escape(message)}.*Allowed: a checkpoint of a causal"):
        load_model(source, read_architecture(source))


def test_only_tensors_of_the_text_model_have_to_be_there(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = vision_language.build("llava")
    whole.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)

    def without(part: str) -> Any:
        save_file({name: tensor for name, tensor in tensors.items() if part not in name}, file, {"format": "pt"})
        source = Source(str(tmp_path))
        return load_model(source, read_architecture(source))

    assert torch.equal(without("multi_modal_projector")(input_ids=TOKENS).logits, whole(input_ids=TOKENS).logits)
    with pytest.raises(
        PartError, match=r"2 tensors of the text model are missing, the first is .*layers\.0\.mlp\.up_proj"
    ):
        without("mlp.up_proj")


def test_a_text_model_without_a_class_in_the_library_is_not_exported(tmp_path: Path) -> None:
    whole = vision_language.build("qwen2_vl")
    whole.save_pretrained(tmp_path)
    source = Source(str(tmp_path))
    with pytest.raises(PartError, match="a qwen2_vl_text cannot be exported"):
        load_model(source, read_architecture(source)).save_pretrained(tmp_path / "exported")
