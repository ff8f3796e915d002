"""Measure the tables: peers take turns in one process; median and range over the rounds."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from magma import Decoding, Magma, atomic_write
from magma.evaluation.prefix_sharing import PrefixCachedGenerator
from magma.system.memory import keep_freed_memory
from magma.values import Segment

from . import gpu, peers
from .causal import generate_causal, train_causal
from .only_with import only_with
from .rows import Row, Step, faster, rounds, training_step


def _peers(vocab: int, batch: int = 4) -> tuple[Magma, dict[str, Callable[[], Tensor]]]:
    """The model, and the losses of all peers on the same examples."""
    model = peers.build(vocab=vocab).train()
    data = peers.examples(batch, vocab)
    media, captions = peers.tensors(data)
    published, by_hand = peers.Published(model), peers.ByHand(model)
    return model, {
        "published": lambda: published(media, captions),
        "transformers": lambda: by_hand(media, captions),
        "ours": lambda: peers.ours(model, data),
        "published, padded to 178": lambda: _shorter(published, media, captions, 178),
    }


def _shorter(published: peers.Published, media: Tensor, captions: list[Tensor], width: int) -> Tensor:
    """The published algorithm with a shorter context: the cost of only its padding."""
    lm: Any = published.model.lm
    context, lm.context = lm.context, width
    try:
        loss: Tensor = published(media, captions)
        return loss
    finally:
        lm.context = context


def train_vs_published(count: int) -> list[Row]:
    """d 384, 4 layers, batch 4, 144 media positions, captions of 8 to 33 tokens; vocabulary 512."""
    model, losses = _peers(vocab=512)
    trained = [p for p in model.parameters() if p.requires_grad]
    names = ("published", "published, padded to 178", "ours")
    times = rounds({name: training_step(losses[name], trained, name == "ours") for name in names}, count)
    return [
        faster("train_vs_published", times, "published", "ours", 100),
        faster("train_vs_published: its padding alone", times, "published", "published, padded to 178", None),
        faster("train_vs_published: all else", times, "published, padded to 178", "ours", None),
    ]


def train_vs_transformers(count: int) -> list[Row]:
    """The same, against transformers by hand, with a small vocabulary and with GPT-2's."""
    found = []
    for vocab, target in ((512, 1.5), (50_258, 3.5)):
        model, losses = _peers(vocab)
        trained = [p for p in model.parameters() if p.requires_grad]
        times = rounds(
            {name: training_step(losses[name], trained, name == "ours") for name in ("transformers", "ours")}, count
        )
        found.append(faster(f"train_vs_transformers, {vocab:,} words", times, "transformers", "ours", target))
    return found


def labels(count: int) -> list[Row]:
    """Batch 8: labels of captions padded to 2,048, token by token, against all at once on as long as they are."""
    data = peers.examples(8, 512)
    captions = [example.segments[1].ids for example in data]
    filled = peers.padded(captions, 2048, 510)
    dense = filled[:, : 144 + max(map(len, captions)) + 1]
    slow, quick = peers.labels_by_loop(filled, 144, 510), labels_at_once(dense, 144, 510)
    assert torch.equal(slow[:, : quick.shape[1]], quick)
    assert bool((slow[:, quick.shape[1] :] == peers.IGNORED).all())
    loop, whole = (lambda: peers.labels_by_loop(filled, 144, 510)), (lambda: labels_at_once(dense, 144, 510))
    times = rounds({"loop": loop, "at once": lambda: [whole() for _ in range(20)]}, count)
    times["at once"] = [t / 20 for t in times["at once"]]
    return [faster("labels", times, "loop", "at once", 200)]


def labels_at_once(captions: Tensor, media: int, eos: int) -> Tensor:
    """The result of `peers.labels_by_loop`, vectorised."""
    text = captions[:, : captions.shape[1] - media]
    ended = (text == eos).cumsum(1) - (text == eos).long() > 0
    return torch.nn.functional.pad(text.masked_fill(ended, peers.IGNORED), (media, 0), value=peers.IGNORED)


def token_efficiency(count: int) -> list[Row]:
    """Useful tokens of all: lognormal captions (mean 26, deviation 21), batch 256 in micro-batches of 64."""
    from magma.data.loader import sort_by_length

    model = peers.build(vocab=512, layers=1)
    collator = model.collator(pad_to_multiple_of=8)
    layouts: dict[str, list[Any]] = {
        "packed in rows of 1,024": [],
        "padded, as they come": [],
        "padded, by length": [],
    }
    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        spread = torch.log(torch.tensor(1 + (21 / 26) ** 2)).sqrt()
        centre = torch.log(torch.tensor(26.0)) - spread**2 / 2
        lengths = torch.exp(centre + spread * torch.randn(256, generator=draw)).round().clamp(1, 400).int().tolist()
        made = [
            collator.encode_example(
                peers.Example([peers.Media("grid", torch.zeros(144, 288)), peers.Tokens(torch.zeros(n).long(), True)])
            )
            for n in lengths
        ]
        useful = sum(map(len, made))
        layouts["packed in rows of 1,024"].append([collator.pack(made[i : i + 64], 1024) for i in range(0, 256, 64)])
        layouts["padded, as they come"].append([collator.pad(made[i : i + 64]) for i in range(0, 256, 64)])
        made = sort_by_length(made)
        layouts["padded, by length"].append([collator.pad(made[i : i + 64]) for i in range(0, 256, 64)])
        for found in layouts.values():
            found[-1] = useful / sum(batch.tokens.numel() for batch in found[-1])
    rows = []
    for layout, found in layouts.items():
        name, target = ("token_efficiency", 0.97) if "packed" in layout else (f"token_efficiency: {layout}", None)
        rows.append(Row(name, statistics.median(found), "useful", target, min(found), max(found)))
    return rows


def plugin_overhead(count: int) -> list[Row]:
    """A model built from a recipe against the same one built by hand: the same operators, and the time."""
    from magma_adapters.bottleneck import Sequential
    from magma_lms.gptj import GPTJ
    from magma_prefixes.linear import Linear
    from magma_vision.clip import Clip

    import magma

    tower: dict[str, Any] = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
    recipe = {
        "name": "both",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {"image": {"encoder": {"use": "clip", **tower}, "prefix": {"use": "linear", "layernorm": True}}},
        "adapters": {"mlp": {"use": "sequential", "downsample": 8}},
    }
    through = magma.assemble(recipe)
    lm, encoder = GPTJ.build(weights="bundled:tiny"), Clip.build(**tower)
    prefix = Linear.build(encoder.dim, encoder.length, lm.dim, layernorm=True)
    by_hand = Magma(
        lm, {"image": magma.Input(encoder, prefix)}, {"mlp": lambda: Sequential.build(lm.dim, downsample=8)}
    ).float()
    by_hand.load_state_dict(through.state_dict())
    images = torch.randn(16, 3, 64, 64)
    data = [peers.Example([peers.Media("image", image), magma.Text("A picture", target=True)]) for image in images]

    def step(model: Magma) -> Step:
        trained = [p for p in model.parameters() if p.requires_grad]
        return training_step(lambda: model.loss(model.collator().batch(data)), trained)

    steps = {"registry": step(through.train()), "by hand": step(by_hand.train())}
    traces = {}
    for name, one in steps.items():
        one()
        with _Operators() as seen:
            one()
        traces[name] = seen.names
    if traces["registry"] != traces["by hand"]:
        raise AssertionError("the registry's model runs other operators than the one wired by hand")
    times = rounds(steps, max(count, 15))
    return [faster("plugin_overhead (time; at most)", times, "registry", "by hand", 1.10)]


class _Operators(TorchDispatchMode):
    """Records the names of all operators that run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _prompts(images: int, questions: float, shots: int) -> list[list[Segment]]:
    """Prompts with the same in-context examples, and on average `questions` about each image."""
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> peers.Tokens:
        return peers.Tokens(torch.randint(0, 510, (length,), generator=draw))

    def grid() -> peers.Media:
        return peers.Media("grid", torch.randn(144, 288, generator=draw))

    shown = [part for _ in range(shots) for part in (grid(), text(10), text(2))]
    prompts: list[list[Segment]] = []
    for i in range(images):
        image = grid()
        count = int((i + 1) * questions) - int(i * questions)
        prompts += [[*shown, image, text(10)] for _ in range(count)]
    return prompts


def _prefix_caching(name: str, prompts: list[list[Segment]], batch: int, target: float, count: int) -> list[Row]:
    """Answers of three tokens, without and with prefix caching, in batches of the same size.

    The width is 768: with a smaller one, attention to the shared prefix, which both compute, takes more of the time.
    """
    model = peers.build(dim=768, layers=3, vocab=512).eval()
    how = Decoding(max_tokens=3)
    found: dict[str, list[list[int]]] = {}

    def plain() -> None:
        batches = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
        found["plain"] = [tokens for some in batches for tokens in model.generate_tokens(some, max_tokens=3)]

    def reused() -> None:
        answers = {i: tokens for some in PrefixCachedGenerator(model, how, batch).tokens(prompts) for i, tokens in some}
        found["reused"] = [answers[i] for i in range(len(prompts))]

    times = rounds({"plain": plain, "reused": reused}, count)
    if found["plain"] != found["reused"]:
        raise AssertionError("prefix caching changes the answers")
    return [faster(name, times, "plain", "reused", target)]


def fewshot_reuse(count: int) -> list[Row]:
    """Four in-context examples with an image before every question: 780 positions a prompt, 625 of them shared."""
    return _prefix_caching("fewshot_reuse", _prompts(192, 1, 4), 16, 4.5, count)


def question_group(count: int) -> list[Row]:
    """VQA v2's 5.3 questions about an image."""
    return _prefix_caching("question_group", _prompts(36, 5.3, 0), 64, 3.5, count)


def checkpoint_size(_: int) -> list[Row]:
    """The 6B recipe, computed: all tensors of the published file in half precision, against our checkpoint."""
    import magma
    from magma.plan import plan

    found = plan(magma.Recipe.load("released/magma_v1"))
    ratio = 2 * found.totals["parameters"] / found.checkpoint_bytes
    return [Row("checkpoint_size", ratio, "x smaller", 16, ratio, ratio)]


GPU_TABLES: dict[str, Callable[[int], list[Row]]] = {
    function.__name__: function for function in (gpu.train_bf16, gpu.decode, gpu.captions, gpu.input_stall)
}
TABLES: dict[str, Callable[[int], list[Row]]] = {
    function.__name__: function
    for function in (
        train_vs_published,
        train_vs_transformers,
        train_causal,
        generate_causal,
        token_efficiency,
        labels,
        plugin_overhead,
        checkpoint_size,
        fewshot_reuse,
        question_group,
        only_with,
    )
}


def machine() -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "cores": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "magma-multimodal")},
    }


def main() -> None:
    """Print the table, and write it to the file of --json."""
    known = {**TABLES, **GPU_TABLES}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(known), metavar="NAME", help=", ".join(known))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        keep_freed_memory()  # as a training run does, for all peers
    rows: list[Row] = []
    for name in chosen.only or (known if torch.cuda.is_available() else TABLES):
        for row in known[name](chosen.rounds):
            rows.append(row)
            target = "" if row.target is None else f"  target {row.target:g}"
            print(f"{row.name:44} {row.value:8.3g} {row.unit:10} ({row.low:.3g} to {row.high:.3g}){target}", flush=True)
    if chosen.json:
        table = {**machine(), "rows": [asdict(row) for row in rows]}
        atomic_write(chosen.json, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
