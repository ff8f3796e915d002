"""Special tokens of a tokenizer of transformers: BOS, end tokens and control tokens."""

from __future__ import annotations

from typing import Any, Literal

from magma import PartError

Bos = Literal["auto", True, False]


def plain_text_options(tokenizer: Any) -> dict[str, bool]:
    """Options to tokenize plain text, in which the name of a special token is ordinary text.

    Mistral's tokenizer always does this, and does not have the option `split_special_tokens`.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True}
    try:
        tokenizer.encode("a", **options)
    except ValueError:
        del options["split_special_tokens"]
    return options


def beginning_tokens(tokenizer: Any, bos: Bos, num_embeddings: int) -> tuple[int, ...]:
    """The first tokens of every sequence: those that the tokenizer adds itself ("auto"), BOS, or none."""
    if bos is False:
        return ()
    if bos is True:
        if tokenizer.bos_token_id is None:
            raise PartError('lm.bos: given true, but the tokenizer has no BOS token; allowed: "auto" or false')
        found = (int(tokenizer.bos_token_id),)
    else:
        bare, with_special = (
            list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True)
        )
        starts = (i for i in range(len(with_special)) if with_special[i : i + len(bare)] == bare)
        found = tuple(with_special[: next(starts, 0)])
    if out_of_range := [token for token in found if token >= num_embeddings]:
        raise PartError(
            f"lm.bos: the tokenizer puts token {out_of_range[0]} before a text, but the model has word embeddings "
            f"for 0 to {num_embeddings - 1}; allowed: lm.bos = false, or the tokenizer that the model was trained with"
        )
    return found


def special_tokens(tokenizer: Any, num_embeddings: int) -> dict[str, int]:
    """Text and id of each special token that has a word embedding."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    return {str(token.content): int(i) for i, token in added if token.special and i < num_embeddings}


def end_tokens(architecture: Any, generation: Any) -> frozenset[int]:
    """Every token that ends a text, from the configurations of a model and of its generation."""
    given = [getattr(one, "eos_token_id", None) for one in (architecture, generation)]
    each = [token for one in given for token in (one if isinstance(one, list | tuple) else [one])]
    return frozenset(token for token in each if token is not None)
