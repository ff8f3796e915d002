"""What a tokenizer of transformers does with text, apart from tokens of plain text: BOS, ends, control tokens."""

from __future__ import annotations

from typing import Any, Literal

from magma import PartError

Bos = Literal["auto", True, False]


def plain_text_options(tokenizer: Any) -> dict[str, bool]:
    """How text that somebody typed is tokenized: the name of a special token in it is a few letters.

    Mistral's own library never takes it for more, and does not know the option.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True}
    try:
        tokenizer.encode("a", **options)
    except ValueError:
        del options["split_special_tokens"]
    return options


def beginning_tokens(tokenizer: Any, bos: Bos, readable: int) -> tuple[int, ...]:
    """The tokens that stand before everything: those that the tokenizer's own call puts there, or BOS, or none."""
    if bos is False:
        return ()
    if bos is True:
        if tokenizer.bos_token_id is None:
            raise PartError('lm.bos: given true, and the tokenizer has no BOS token; allowed: "auto" or false')
        found = (int(tokenizer.bos_token_id),)
    else:
        bare, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
        starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        found = tuple(whole[: next(starts, 0)])
    if beyond := [token for token in found if token >= readable]:
        raise PartError(
            f"lm.bos: the tokenizer puts token {beyond[0]} before a text, and the model has word embeddings for 0 to "
            f"{readable - 1}; allowed: lm.bos = false, or the tokenizer that the model was trained with"
        )
    return found


def special_tokens(tokenizer: Any, readable: int) -> dict[str, int]:
    """Text and id of each special token that has a word embedding."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    return {str(token.content): int(i) for i, token in added if token.special and i < readable}


def end_tokens(architecture: Any, generation: Any) -> frozenset[int]:
    """Every token that ends a text, by a model's configuration and by that of its generation."""
    given = [getattr(one, "eos_token_id", None) for one in (architecture, generation)]
    each = [token for one in given for token in (one if isinstance(one, list | tuple) else [one])]
    return frozenset(token for token in each if token is not None)
