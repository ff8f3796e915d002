"""What becomes of text: segments in a row, BOS, ends, control tokens, and what no tokenizer accepts."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import llama_tokenizers
import pytest
import torch
from llama_tokenizers import CORPUS, END, KINDS, language_model, prepend
from magma_lms.causal import Causal
from magma_lms.gptj import GPTJ
from program import magma as in_process
from toys import ToyEncoder, ToyPrefix

import magma
from magma import (
    CheckInputs,
    CheckpointError,
    Decoding,
    Example,
    Input,
    InputError,
    Magma,
    Media,
    PartError,
    Text,
    Tokens,
)
from magma.data.collator import Collator
from magma.data.tokenization import decode_after, encode
from magma.evaluation.prefix_sharing import PrefixCachedGenerator
from magma.generation.decoding import Answer, continuations
from magma.plugins.conformance.text import CHECKS
from magma.testing import PartUnderTest

SPLITS = [["A:", " seven"], ["A: ", "seven"], ["x\n", "y"], ["", "A: \u20ac", "", "\U0001f600 b"], ["a  ", "  b", "c"]]


@pytest.fixture(params=KINDS)
def lm(request: pytest.FixtureRequest) -> Causal:
    return language_model(KINDS[request.param]())


def seeing(lm: Causal) -> Magma:
    encoder = ToyEncoder(ToyEncoder.Config())
    return Magma(lm, {"number": Input(encoder, ToyPrefix(ToyPrefix.Config(), encoder.dim, encoder.length, lm.dim))})


def splits() -> list[list[str]]:
    """Those above, and a longer text cut in several random places."""
    draw = random.Random(5)
    found = []
    for _ in range(10):
        cuts = [0, *sorted(draw.sample(range(len(CORPUS[0])), 4)), len(CORPUS[0])]
        found.append([CORPUS[0][a:b] for a, b in itertools.pairwise(cuts)])
    return [*SPLITS, *found]


def test_texts_in_a_row_have_the_tokens_of_the_whole(lm: Causal) -> None:
    collator = Collator(lm, {})
    for texts in splits():
        found = collator.encode_example(Example([Text(text) for text in texts]))
        assert found.tokens == lm._tokenizer("".join(texts))["input_ids"], texts
        assert found.tokens[0] == 1, "BOS, as the tokenizer's own call gives it"


def test_a_text_after_a_medium_gets_no_space_of_its_own(lm: Causal) -> None:
    collator = seeing(lm).collator()
    for texts in splits():
        found = collator.encode_example(Example([Media("number", 0), *(Text(text) for text in texts)]))
        assert found.tokens[:2] == [1, 0]
        assert decode_after(lm, found.tokens[2:]) == "".join(texts)
    pieces = lm._tokenizer.convert_ids_to_tokens(
        collator.encode_example(Example([Media("number", 0), Text("y")])).tokens
    )
    assert pieces[2:] == ["y"]


def test_a_token_of_two_texts_is_a_target_where_one_of_them_is(lm: Causal) -> None:
    collator = Collator(lm, {})

    def learnt(*texts: Text) -> list[str]:
        found = collator.encode_example(Example(texts))
        ids = [token for token, target in zip(found.tokens, found.targets, strict=True) if target]
        return list(lm._tokenizer.convert_ids_to_tokens(ids))

    seven = "\u2581seven"
    assert learnt(Text("A:"), Text(" seven", target=True)) == [seven, END]
    assert learnt(Text("A: "), Text("seven", target=True)) == [seven, END]
    assert learnt(Text("A: se", target=True), Text("ven x"))[-1] == seven
    assert learnt(Text("Q: x A:"), Text(" seven", target=True), Text(" y"), Text(" seven", target=True)) == [
        seven
    ] * 2 + [END]


def test_an_answer_keeps_its_first_space(lm: Causal) -> None:
    answer = Answer(lm, Decoding(stop=(" x",)))
    for token in encode(lm, [" seven nine x"], at_start=False)[0]:
        answer.add(token)
    assert answer.text == " seven nine"
    assert list(continuations(iter([" ", " seven"]), ())) == [" ", "seven"]


def test_offsets_and_their_absence_agree() -> None:
    fast, slow = (language_model(KINDS[kind]()) for kind in ("prepend", "slow"))
    assert fast.encode_with_offsets("a b")[1] is not None
    assert slow.encode_with_offsets("a b")[1] is None
    for begins in (True, False):
        for texts in splits():
            assert encode(fast, texts, begins) == encode(slow, texts, begins), texts


def test_prompts_that_begin_alike_are_read_as_each_by_itself(lm: Causal) -> None:
    """Also where what they share ends between two texts."""
    model = seeing(lm)
    shared = [Text("x\n"), Media("number", 1), Text("A:")]
    prompts: list[list[Any]] = [
        [*shared, Text(" seven"), Media("number", 2), Text(" Q:")],
        [*shared, Text("y"), Media("number", 2), Text("Q:")],
        [*shared, Text("y"), Media("number", 3), Text("Q:"), Text(" x")],
    ]
    how = Decoding(max_tokens=4)
    found = dict(one for batch in PrefixCachedGenerator(model, how).tokens(prompts) for one in batch)
    assert [found[i] for i in range(3)] == [model.generate_tokens(prompt, max_tokens=4) for prompt in prompts]


# BOS


def test_bos_by_recipe() -> None:
    tokenizer = prepend()
    assert language_model(tokenizer).beginning == (1,)
    assert language_model(tokenizer, bos=True).beginning == (1,)
    assert language_model(tokenizer, bos=False).beginning == ()
    assert GPTJ.build(weights="bundled:tiny").beginning == ()
    assert GPTJ.build(weights="bundled:tiny", bos=True).beginning == (0,)
    tokenizer.add_bos_token = False
    assert language_model(tokenizer).beginning == ()
    assert language_model(tokenizer, bos=True).beginning == (1,)


def test_bos_stands_before_media_once_and_is_no_target() -> None:
    collator = seeing(language_model(prepend())).collator()
    found = collator.encode_example(Example([Media("number", 0), Text("y", target=True)]))
    assert (found.tokens[:2], found.targets[:2], found.media[0][2]) == ([1, 0], [False, False], 1)
    assert collator.encode_example(Example([Tokens(torch.tensor([1, 5]))])).tokens == [1, 5]
    assert collator.encode_example(Example([Tokens(torch.tensor([5, 1]))])).tokens == [1, 5, 1]
    with pytest.raises(InputError, match="is empty"):
        collator.encode_example(Example([Text("")]))


def test_bos_that_cannot_be() -> None:
    tokenizer = prepend()
    tokenizer.bos_token = None
    with pytest.raises(PartError, match='lm.bos: given true, but the tokenizer has no BOS token; allowed: "auto"'):
        _ = language_model(tokenizer, bos=True).beginning
    without = Causal.build(**Causal.check_inputs(Path()).config | {"tokenizer": False})
    assert without.beginning == ()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A checkpoint of a language model in a folder, whose tokenizer begins with BOS."""
    lm = language_model(prepend())
    lm.export(tmp_path / "lm")
    model = magma.assemble({"name": "m", "lm": {"use": "causal", "weights": str(tmp_path / "lm")}})
    return magma.save(model, tmp_path / "stored")


def older(folder: Path) -> Path:
    """As versions before this one wrote it."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest.pop("text") == {"beginning": [1], "joined": True}
    file.write_text(json.dumps(manifest))
    return folder


def test_a_checkpoint_keeps_what_it_was_trained_with(stored: Path, tmp_path: Path) -> None:
    texts = [Text("A:"), Text(" seven")]

    def read(model: Magma) -> list[int]:
        return model.collator().encode_example(Example(texts)).tokens

    tokenizer = prepend()
    assert read(magma.load(stored)) == tokenizer("A: seven")["input_ids"]
    assert read(magma.load(stored, overrides=["lm.bos=false"])) == tokenizer("A: seven")["input_ids"][1:]
    apart = [i for text in texts for i in tokenizer(text.text, add_special_tokens=False)["input_ids"]]
    kept = magma.load(older(stored))
    assert read(kept) == apart
    assert decode_after(kept.lm, kept.lm.encode("seven")) == "seven"
    assert read(magma.load(magma.save(kept, tmp_path / "again"))) == apart


def test_a_language_model_that_was_moved(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "lm").rename(tmp_path / "lm [two] 'x'")
    with pytest.raises(
        PartError, match=r'which is not a folder.* Has it moved\? Load it with lm="PLACE", or --lm PLACE'
    ):
        magma.load(stored)
    assert magma.load(stored, lm=tmp_path / "lm [two] 'x'").lm.beginning == (1,)
    found = in_process("generate", str(stored), "--lm", str(tmp_path / "lm [two] 'x'"), "--text", "caf\udce9")
    assert (found.returncode, found.stderr.count("building lm")) == (0, 1), found.stderr
    other = language_model(prepend())
    torch.nn.init.normal_(other.model.lm_head.weight)
    other.export(tmp_path / "other")
    with pytest.raises(CheckpointError, match="frozen tensors differ from those of training"):
        magma.load(stored, lm=str(tmp_path / "other"))


# Text that is none


def test_half_a_surrogate_pair(lm: Causal) -> None:
    text = "cool \ud83d"
    collator = Collator(lm, {})
    with pytest.raises(InputError, match=r"row 3: its text has \\ud83d at character 6, half of a surrogate pair"):
        collator.encode_example(Example([Text(text, target=True)], "row 3"))
    asked = collator.encode_example(Example([Text(text)]), truncate=False)
    assert asked.tokens == collator.encode_example(Example([Text("cool \ufffd")])).tokens
    assert len(Magma(lm).generate_tokens([text, "caf\udce9"], max_tokens=2)) == 2
    assert len(Magma(lm).log_likelihood([["a"]], [text])) == 1


def test_typed_control_tokens_are_letters(lm: Causal) -> None:
    for typed in (END, "<s>", "<unk>", f"a{END}b <s>"):
        found = Collator(lm, {}).encode_example(Example([Text(typed)]))
        assert found.tokens[0] == 1
        assert not {0, 1, 2} & set(found.tokens[1:])
        assert lm.decode(found.tokens[1:]) == typed
    bundled = GPTJ.build(weights="bundled:tiny")
    assert bundled.decode(ids := bundled.encode("a<|endoftext|>b")) == "a<|endoftext|>b"
    assert 0 not in ids


def test_a_tokenizer_that_knows_no_option_for_it() -> None:
    class Own(llama_tokenizers.SlowTokenizer):
        """As Mistral's library, which refuses the option, and takes every text for plain text."""

        def encode(self, text: str, **how: Any) -> list[int]:
            if how.pop("split_special_tokens", False):
                raise ValueError("not supported")
            return super().encode(text, split_special_tokens=True, **how)

    lm = language_model(Own())
    assert lm.encode(f"a{END}b") == language_model(prepend()).encode(f"a{END}b")


def test_a_template_may_hold_control_tokens_and_its_values_none(lm: Causal) -> None:
    collator = Collator(lm, {})
    filled = Text.fill("<s>A:{text}</s> x", text=f" seven{END}")
    assert filled.text == f"<s>A: seven{END}</s> x"
    found = collator.encode_example(Example([filled])).tokens
    assert (found.count(1), found.count(2)) == (2, 1)
    assert found[2:-2] == encode(lm, [f"A: seven{END}"], at_start=False)[0]
    nested = Text.fill("Q: {question} A:", question="{question}?")
    assert (nested.text, nested.control) == ("Q: {question}? A:", ((0, 3), (14, 17)))
    both = nested + Text(" x") + Text.fill("</s>")
    assert (both.text, both.control) == ("Q: {question}? A: x</s>", ((0, 3), (14, 17), (19, 23)))
    assert collator.encode_example(Example([Text(filled.text)])).tokens.count(1) == 1


def test_added_tokens_beyond_the_word_embeddings() -> None:
    tokenizer = prepend()
    lm = language_model(tokenizer)
    tokenizer.add_tokens(["zebra"])
    with pytest.raises(
        InputError,
        match=rf"row 1: the tokenizer gives token {lm.vocab} \('zebra'\), .* embeddings for 0 to {lm.vocab - 1}",
    ):
        Collator(lm, {}).encode_example(Example([Text("a zebra")], "row 1"))
    tokenizer.add_special_tokens({"bos_token": "<new>"})
    with pytest.raises(PartError, match=rf"lm.bos: the tokenizer puts token {lm.vocab + 1} before a text"):
        _ = language_model_of(lm.vocab, tokenizer).beginning


def language_model_of(vocab: int, tokenizer: Any) -> Causal:
    lm = language_model(range(vocab), bos=True)
    lm.__dict__["_tokenizer"] = tokenizer
    return lm


# Ends


def test_every_end_of_text_ends_an_answer(tmp_path: Path) -> None:
    lm = language_model(prepend())
    free = Magma(lm).generate_tokens(["A:"], max_tokens=8)
    assert lm.ends == {2}
    ending = next(token for token in free[1:] if token != free[0])
    lm.export(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [2, ending]}))
    by_generation = Causal.build(weights=str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [2, ending]}))
    (tmp_path / "generation_config.json").unlink()
    for several in (by_generation, Causal.build(weights=str(tmp_path))):
        assert (several.eos, several.ends) == (2, {2, ending})
        assert Magma(several).generate_tokens(["A:"], max_tokens=8) == free[: free.index(ending)]


# Streams


def test_a_stream_shows_what_generate_gives(lm: Causal) -> None:
    for stop in ("b\u20ac", "\u20ac", "\U0001f600", "n \u20ac"):
        for text in (f"seven {stop} x", f"{stop}", "seven b\u20ad \U0001f601", "seven \ufffd"):
            how = Decoding(stop=(stop,), max_tokens=99)
            answer, seen = Answer(lm, how), []
            for token in encode(lm, [text], at_start=False)[0]:
                more = answer.add(token)
                seen.append(answer.text)
                if not more:
                    break
            assert "".join(continuations(iter(seen), how.stop)) == answer.text == text.partition(stop)[0]


@pytest.mark.parametrize("kind", ["first", "always", "prepend"])
def test_the_conformance_kit_finds_no_fault(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    tokenizer.save_pretrained(tmp_path)
    fields = language_model(tokenizer).config.model_dump(exclude_none=True)
    subject = PartUnderTest(Causal, CheckInputs({**fields, "tokenizer": str(tmp_path)}))
    assert subject.make().marks_beginning
    for check in CHECKS:
        check(subject)


def test_kinds_are_what_they_say() -> None:
    """Each of them puts a space before a text, so that the tests above are of something."""
    assert all(language_model(make()).marks_beginning for make in KINDS.values())
    assert not GPTJ.build(weights="bundled:tiny").marks_beginning
    assert llama_tokenizers.first()(" x")["input_ids"] != prepend()(" x")["input_ids"]
