"""Trains the bundled language model, reproducibly: `python -m magma_lms.bundled.make_tiny --out DIR`.

It is a GPT-J of 2 M parameters, trained on `corpus.py` for some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .corpus import Document, documents
from .words import NUMBERS, SPEAKERS, TENS, parity

SEED = 0
VOCABULARY = 768
CONTEXT = 1024
WINDOW, BATCH, STEPS = 160, 32, 2600
LR, WARMUP = 3e-3, 100
THREADS = 2
END = "<|endoftext|>"


def make_tokenizer() -> Any:
    """A byte-level BPE whose number words are single tokens, with and without a leading space."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (segment for document in itertools.islice(documents(SEED), 60_000) for segment in document)
    words = (f" {word}" for word in (*NUMBERS, *TENS, *SPEAKERS) for _ in range(3000))
    tokenizer.train_from_iterator(itertools.chain(texts, words), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)


def make_model() -> Any:
    """A small GPT-J with random weights."""
    from transformers import GPTJConfig, GPTJForCausalLM

    config = GPTJConfig(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=192,
        n_layer=4,
        n_head=6,
        rotary_dim=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(SEED)
    return GPTJForCausalLM(config)


def ids_of(document: Document, tokenizer: Any, known: dict[str, list[int]]) -> list[int]:
    """Token ids of the segments, which are tokenized separately, as in MAGMA."""
    ids = []
    for segment in document:
        if segment not in known:
            known[segment] = tokenizer.encode(segment, add_special_tokens=False)
        ids += known[segment]
    return ids


def batches(tokenizer: Any) -> Iterator[Tensor]:
    """Batches [batch, window] of concatenated documents, each after an end-of-text token."""
    known: dict[str, list[int]] = {}
    buffer: list[int] = []
    for document in documents(SEED + 1):
        buffer += [0, *ids_of(document, tokenizer, known)]
        if len(buffer) >= WINDOW * BATCH:
            yield torch.tensor(buffer[: WINDOW * BATCH]).view(BATCH, WINDOW)
            buffer = []
        if len(known) > 200_000:
            known.clear()


def train(model: Any, tokenizer: Any, steps: int) -> None:
    """Next-token prediction with bfloat16 autocast, AdamW and a cosine schedule to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / WARMUP) * (1 + math.cos(math.pi * i / steps)) / 2
    )
    start = time.perf_counter()
    model.train()
    for step, ids in enumerate(itertools.islice(batches(tokenizer), steps), 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            speed = step * ids.numel() / (time.perf_counter() - start)
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {speed:,.0f} tokens/s", flush=True)


def probes() -> dict[str, list[tuple[Document, str]]]:
    """Prompts and the first words of their answers, for abilities that the recipes rely on; digits only."""
    digits = list(enumerate(NUMBERS[:10]))
    pairs = [(n, m) for n in range(10) for m in range(10)]
    odd, following = "Q: Is it odd or even? A:", "Q: Which number comes next? A:"
    return {
        "caption": [([f" {w}" * 4, "A picture of a"], w) for n, w in digits if n != 8],
        "name": [([f" {w}" * 4, "Q: Which number is this? A:"], w) for _, w in digits],
        "parity, one step": [([f" {w}" * 4, odd], parity(n)) for n, w in digits],
        "next, one step": [([f" {w}" * 4, following], NUMBERS[n + 1]) for n, w in digits],
        "parity, two steps": [([f" {w}" * 4, "A picture of", f" the number {w}. {odd}"], parity(n)) for n, w in digits],
        "parity, text only": [([f"A picture of the digit {w}. {odd}"], parity(n)) for n, w in digits],
        "next, two steps": [([f"A picture of the digit {w}. {following}"], NUMBERS[n + 1]) for n, w in digits],
        "larger than five": [
            ([f" {w}" * 4, "Q: Is it larger than five? A:"], "yes" if n > 5 else "no") for n, w in digits
        ],
        "same number": [
            ([f" {NUMBERS[n]}" * 4, f" {NUMBERS[m]}" * 4, "Q: Is it the same number? A:"], "yes" if n == m else "no")
            for n, m in pairs
        ],
        "same number, text only": [
            (
                [f"A picture of the number {NUMBERS[n]}. A recording of the number {NUMBERS[m]}. the same number?"],
                "yes" if n == m else "no",
            )
            for n, m in pairs
        ],
        "which is larger": [
            ([f" {NUMBERS[n]}" * 3, f" {NUMBERS[m]}" * 3, "Q: Which is larger? A:"], NUMBERS[max(n, m)])
            for n, m in pairs
            if n != m
        ],
        "parity, two shots": [
            (
                [
                    *(f" {NUMBERS[m]}" * 4, odd, f" {parity(m)}", "\n"),
                    *(f" {NUMBERS[(m + 3) % 10]}" * 4, odd, f" {parity(m + 3)}", "\n"),
                    *(f" {NUMBERS[n]}" * 4, odd),
                ],
                parity(n),
            )
            for n, m in pairs
        ],
    }


@torch.no_grad()
def accuracies(model: Any, tokenizer: Any) -> dict[str, float]:
    """Fraction of greedy answers whose first word is right, for each probe."""
    model.eval()
    found = {}
    for name, cases in probes().items():
        right = 0
        prompts = [([0, *ids_of(document, tokenizer, {})], answer) for document, answer in cases]
        for length in {len(ids) for ids, _ in prompts}:  # batches without padding
            rows = torch.tensor([ids for ids, _ in prompts if len(ids) == length])
            for _ in range(3):
                rows = torch.cat([rows, model(input_ids=rows).logits[:, -1:].argmax(-1)], dim=1)
            answers = [answer for ids, answer in prompts if len(ids) == length]
            for ids, answer in zip(rows[:, length:].tolist(), answers, strict=True):
                words = tokenizer.decode(ids[: ids.index(0) if 0 in ids else None]).split()
                right += bool(words) and words[0].strip(".,") == answer
        found[name] = right / len(cases)
    return found


def main() -> None:
    """Make the tokenizer, train, save float16 weights, print the probes. The folder is renamed when it is complete."""
    from transformers import PreTrainedTokenizerFast

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tokenizer", type=Path, help="folder of an existing tokenizer; default: make one")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists already")
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    if arguments.tokenizer is None:
        tokenizer = make_tokenizer()
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer)
    model = make_model()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, arguments.steps)
    partial = arguments.out.with_name(f".{arguments.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.half().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)
    partial.rename(arguments.out)
    for name, accuracy in accuracies(model.float(), tokenizer).items():
        print(f"{name:24} {accuracy:.3f}")


if __name__ == "__main__":
    main()
