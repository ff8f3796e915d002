"""The text model inside a checkpoint for several modalities, such as Gemma 3's or Qwen2.5-VL's.

Nothing is known of the families: the text configuration says which class the decoder has. The decoder of this class and
the head are taken from the library's whole model, and both have to give the same logits for a text.
"""

from __future__ import annotations

import copy
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from magma import PartError, error_summary

PROBE = 7
"""Number of tokens of the text for which the logits are compared."""


def is_composite(architecture: Any) -> bool:
    """Whether a configuration contains that of a text model, beside those of other parts."""
    return type(_text_part(architecture)) is not type(architecture)


def text_architecture(architecture: Any) -> Any:
    """The configuration of the text model inside a composite one. Both models are built on meta, nothing is read.

    Raises:
        PartError: The text model cannot be separated from the rest.
    """
    text = copy.deepcopy(_text_part(architecture))
    if text.to_dict().get("eos_token_id") is None:
        text.eos_token_id = architecture.to_dict().get("eos_token_id")
    with torch.device("cpu"):  # this imports modules, which may create tensors
        whole_class, text_class = whole_model_class(architecture), text_model_class(text)
    if text_class is None:
        raise _inseparable(architecture, f"transformers has no model for its text configuration, {text.model_type}")
    with torch.device("meta"):
        whole = whole_class._from_config(copy.deepcopy(architecture))
        head = whole.get_output_embeddings()
        text.tie_word_embeddings = head is not None and head.weight is whole.get_input_embeddings().weight
        model = text_class._from_config(copy.deepcopy(text))
    shapes = _shapes(model)
    if _shapes(_text_model(whole, model, architecture)) != shapes:
        raise _inseparable(architecture, f"its tensors differ from those of a {text.model_type}")
    return text


def text_model_class(text: Any) -> Any:
    """The library's class of causal language models for a text configuration; None if it has none.

    If the library only has the decoder, a linear head is put on it.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    # The library lists some text models under the configuration of the whole model, which is in the same module.
    for other in vars(sys.modules[type(text).__module__]).values():
        if isinstance(other, type) and other in MODEL_FOR_CAUSAL_LM_MAPPING:
            found = MODEL_FOR_CAUSAL_LM_MAPPING[other]
            if found.config_class is type(text):
                return found
    reads_tokens = type(text) in MODEL_MAPPING and "vocab_size" in text.to_dict()
    return _with_head(MODEL_MAPPING[type(text)]) if reads_tokens else None


def whole_model_class(architecture: Any) -> Any:
    """The library's class for all of a composite configuration. Raises `PartError` if it has none."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING):
        if type(architecture) in mapping:
            return mapping[type(architecture)]
    raise _inseparable(architecture, "transformers does not generate text with this type")


def separate_text_model(whole: Any, text: Any, missing: set[str]) -> Any:
    """The text model of a whole model with its weights, whose modules it gets.

    Args:
        whole: The library's model of the whole checkpoint.
        text: The configuration of the text model, of `text_architecture`.
        missing: Names of tensors of `whole` that the checkpoint does not have.

    Returns:
        The text model, in eval mode.

    Raises:
        PartError: A tensor of the text model is missing, or its logits for a text are not those of the whole model.
    """
    text_class = text_model_class(text)
    with torch.device("meta"):
        model = text_class._from_config(copy.deepcopy(text))
    model = _text_model(whole, model, whole.config).eval()
    kept = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    absent = sorted(
        name for name, tensor in whole.state_dict(keep_vars=True).items() if name in missing and id(tensor) in kept
    )
    if absent:
        raise PartError(f"lm.weights: {len(absent)} tensors of the text model are missing, the first is {absent[0]}")
    if left := [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]:
        raise _inseparable(whole.config, f"it has no {left[0]}")
    model.config, model.generation_config = _text_part(whole.config), whole.generation_config  # the decoder's own
    model.config.eos_token_id, model.config.tie_word_embeddings = text.eos_token_id, text.tie_word_embeddings
    if model not in set(whole.modules()):
        _drop_unused_scale(whole.eval(), model)
        _compare_logits(whole, model)
    return model


@torch.no_grad()
def _drop_unused_scale(whole: Any, model: Any) -> None:
    """Set the factor of the logits to 1 if the whole model, unlike the text model, does not multiply with it."""
    scale = getattr(model, "logit_scale", None)
    if not isinstance(scale, float) or scale in (0.0, 1.0):
        return
    ids = _ordinary_tokens(whole.config, model.config.vocab_size)
    expected, found = _whole_logits(whole, ids), model(input_ids=ids).logits
    if torch.allclose(found / scale, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()):
        model.logit_scale = model.config.logit_scale = 1.0


def _text_part(architecture: Any) -> Any:
    return architecture.get_text_config(decoder=True)


def _text_model(whole: Any, model: Any, architecture: Any) -> Any:
    """The module of `whole` that is a text model, or `model` with the decoder and the head of `whole`."""
    if len(same := _outermost(whole, type(model))) == 1:
        return same[0]
    words, head = model.get_input_embeddings(), whole.get_output_embeddings()
    name, decoder = next((name, child) for name, child in model.named_children() if words in set(child.modules()))
    found = _outermost(whole, type(decoder))
    if len(found) != 1 or head is None:
        raise _inseparable(
            architecture,
            f"it has {len(found)} modules {type(decoder).__name__} and {'no' if head is None else 'one'} head",
        )
    setattr(model, name, found[0])
    model.set_output_embeddings(head)
    return model


def _outermost(whole: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    """The modules of exactly this class that are in no other one."""
    if type(whole) is kind:
        return [whole]
    return [found for child in whole.children() for found in _outermost(child, kind)]


def _shapes(model: nn.Module) -> list[torch.Size]:
    return [tensor.shape for tensor in model.parameters()]


@torch.no_grad()
def _compare_logits(whole: Any, model: Any) -> None:
    """Raise `PartError` if the logits of a short text differ."""
    ids = _ordinary_tokens(whole.config, model.config.vocab_size)
    expected = _whole_logits(whole, ids)
    difference = (model(input_ids=ids).logits - expected).abs().max().item()
    allowed = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max().item()
    if not difference <= allowed:
        raise _inseparable(
            whole.config, f"its logits for a text differ from those of the whole model by {difference:.2g}"
        )


def _whole_logits(whole: Any, ids: Tensor) -> Tensor:
    """Logits [1, t, v] of token ids [1, t]. Raises `PartError` if the whole model needs media."""
    try:
        logits: Tensor = whole(input_ids=ids).logits
    except Exception as error:  # whatever a model of the library raises when it does not get its media
        raise _inseparable(
            whole.config, f"the whole model does not run on text only: {error_summary(error)}"
        ) from error
    return logits


def _ordinary_tokens(architecture: Any, vocabulary: int) -> Tensor:
    """Token ids [1, t] that the configuration does not mention: not that of an image, or padding."""
    special = {value for value in architecture.to_dict().values() if isinstance(value, int)}
    return torch.tensor([[token for token in range(vocabulary) if token not in special][:PROBE]])


def _inseparable(architecture: Any, reason: str) -> PartError:
    return PartError(
        f"lm.weights: the text model of a {architecture.model_type} checkpoint cannot be separated: {reason}. "
        "Allowed: a checkpoint of a causal language model"
    )


@cache
def _with_head(decoder_class: Any) -> Any:
    """A causal language model made of a decoder of the library and a linear head."""
    from transformers import GenerationMixin
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class TextModelWithHead(decoder_class.__bases__[0], GenerationMixin):  # type: ignore[misc]  # the library is untyped
        """A decoder with a linear head."""

        config_class = decoder_class.config_class
        base_model_prefix = "model"
        _tied_weights_keys = None

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = decoder_class(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.post_init()
            if config.tie_word_embeddings:
                self.lm_head.weight = self.get_input_embeddings().weight

        def forward(self, input_ids: Tensor | None = None, **options: Any) -> Any:
            """Token ids [b, t], or `inputs_embeds` [b, t, d], to logits [b, t, v]."""
            out = self.model(input_ids=input_ids, **options)
            return CausalLMOutputWithPast(
                logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values
            )

        def save_pretrained(self, *_: Any, **__: Any) -> None:
            """Raises `PartError`: transformers could not read it again."""
            raise PartError(f"lm: a {self.config.model_type} cannot be exported: transformers has no class for it")

    return TextModelWithHead
