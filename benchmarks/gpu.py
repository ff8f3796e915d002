"""The rows that need a GPU: the 6B model with random weights. The same code runs with small sizes on any machine."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import magma
from magma import Example, Magma, Media, Tokens
from magma.data.loader import prefetch, sort_by_length
from magma.data.mixture import Mixture
from magma.recipe.assemble import assemble
from magma.recipe.recipe import Recipe
from magma.training.data import make_loader

from . import peers
from .rows import Row, Step, faster, rounds


@dataclass(frozen=True)
class Work:
    """The sizes of the benchmarks; the defaults are those of the table."""

    overrides: tuple[str, ...] = ("train.precision='bf16'",)
    """Of the recipe magma_base."""
    device: str = "cuda"
    batch: int = 256
    micro: int = 128
    published: int = 8
    """Batch size of the published algorithm: 2,048 positions an example, with activation checkpointing."""
    by_hand: int = 32
    decode: tuple[int, ...] = (1, 256)
    new_tokens: int = 64
    captions: int = 256
    """Images that are captioned."""
    photo: tuple[int, int] = (640, 480)
    pace: float = 100.0
    """Samples per second that the input has to deliver."""
    steps: int = 6
    """Of the input."""


FULL = Work()


def build(work: Work) -> Magma:
    """The recipe's model on its device with random weights, which are made there; no file is read."""
    from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

    torch.manual_seed(0)
    model = assemble(Recipe.load("magma_base", work.overrides), device="meta")
    model.to_empty(device=work.device)
    with torch.no_grad():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.ndim > 1:
                    p.normal_(std=0.02)
                else:
                    p.fill_(float(name == "weight"))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
        table: Any = model.lm.model.transformer.rope_table
        table.copy_(create_sinusoidal_positions(*table.shape))
    return model.train()


def examples(model: Magma, count: int) -> list[Example]:
    """A prepared image and a caption of 8 to 33 tokens each."""
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(model.input_modules()["image"].encoder.dummy_item().shape, generator=draw)
    lengths = torch.randint(8, 34, (count,), generator=draw).tolist()
    words = [torch.randint(0, model.lm.eos, (length,), generator=draw) for length in lengths]
    return [Example([Media("image", image), Tokens(caption, target=True)]) for caption in words]


class Adam:
    """Our trainer's optimizer: float32 copies, one kernel, clipped gradients."""

    def __init__(self, model: Magma) -> None:
        self.low = [p for p in model.parameters() if p.requires_grad]
        self.high = [p.detach().float() for p in self.low]
        self.adam = torch.optim.Adam(self.high, lr=1e-5, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step and remove the gradients."""
        for low, high in zip(self.low, self.high, strict=True):
            high.grad, low.grad = None if low.grad is None else low.grad.float(), None
        nn.utils.clip_grad_norm_(self.high, 1.0, foreach=True)
        self.adam.step()
        torch._foreach_copy_(self.low, self.high)


def _wait(work: Work) -> None:
    if work.device != "cpu":
        torch.cuda.synchronize()


def training(model: Magma, work: Work) -> dict[str, tuple[int, Step]]:
    """Number of examples and training step of this package and of its peers: encoder, language model, optimizer."""
    optimizer = Adam(model)
    data = examples(model, work.batch)
    collator = model.collator(pad_to_multiple_of=8)
    encoded = sort_by_length([collator.encode_example(example) for example in data])
    batches = [
        collator.pad(encoded[i : i + work.micro]).to(work.device, model.dtype) for i in range(0, work.batch, work.micro)
    ]
    targets = sum(len(batch.labels) for batch in batches)

    def ours() -> None:
        for batch in batches:
            (model(batch) / targets).backward()
        optimizer.step()
        _wait(work)

    def peer(loss: Callable[[Tensor, list[Tensor]], Tensor], count: int) -> Step:
        media = torch.stack([e.segments[0].value for e in data[:count]])
        media = media.to(work.device, model.dtype)
        captions = [e.segments[1].ids for e in data[:count]]

        def step() -> None:
            loss(media, captions).backward()
            optimizer.step()
            _wait(work)

        return step

    published = peers.Published(model).to(work.device)
    return {
        "ours": (work.batch, ours),
        "published": (work.published, peer(published, work.published)),
        "transformers": (work.by_hand, peer(peers.ByHand(model), work.by_hand)),
    }


def train_bf16(count: int, work: Work = FULL) -> list[Row]:
    """GPT-J-6B, RN50x16, adapters 8/8, random weights: samples per second, memory, and the peers in the same run."""
    model = build(work)
    made = training(model, work)
    times = rounds({name: step for name, (_, step) in made.items()}, count)
    each = {name: [t / made[name][0] for t in seconds] for name, seconds in times.items()}
    rates = [1 / t for t in each["ours"]]
    rows = [
        Row("train_bf16", statistics.median(rates), "samples/s", 100, min(rates), max(rates)),
        faster("train_bf16 vs published", each, "published", "ours", 25),
        faster("train_bf16 vs transformers", each, "transformers", "ours", 2),
    ]
    if work.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        made["ours"][1]()
        peak = torch.cuda.max_memory_allocated() / 2**30
        rows.append(Row(f"peak memory, micro-batch {work.micro} (at most)", peak, "GiB", 128, peak, peak))
    return rows


def decode(count: int, work: Work = FULL) -> list[Row]:
    """New tokens per second after an image, with one prompt and with many."""
    model = build(work).eval()
    rows = []
    for batch, target in zip(work.decode, (300, 24_000), strict=True):
        prompts = [example.segments[:1] for example in examples(model, batch)]
        rates = []
        for i in range(count + 1):
            began = time.perf_counter()
            made = model.generate_tokens(prompts, max_tokens=work.new_tokens)
            _wait(work)
            if i:
                rates.append(sum(map(len, made)) / (time.perf_counter() - began))
        rows.append(Row(f"decode, batch {batch}", statistics.median(rates), "tokens/s", target, min(rates), max(rates)))
    return rows


@contextmanager
def photos(work: Work) -> Iterator[Path]:
    """A folder for the data source `captions`."""
    with tempfile.TemporaryDirectory() as name:
        folder, lines = Path(name), []
        for i in range(64):
            noise = torch.randint(0, 256, (12, 16, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Image.fromarray(noise.numpy()).resize(work.photo, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
            lines.append(f'{{"image": "{i}.jpg", "caption": "a picture of the number {i}"}}\n')
        (folder / "train.jsonl").write_text("".join(lines))
        yield folder


def _workers() -> int:
    return max(1, (os.cpu_count() or 1) - 1)


def captions(count: int, work: Work = FULL) -> list[Row]:
    """From JPEG files to captions of 20 tokens; workers decode the next images meanwhile."""
    model = build(work).eval()
    encoder = model.input_modules()["image"].encoder
    batch = max(work.decode)
    with photos(work) as folder:
        files = list(itertools.islice(itertools.cycle(sorted(folder.glob("*.jpg"))), work.captions))
        chunks = [files[i : i + batch] for i in range(0, len(files), batch)]
        rates = []
        for i in range(count + 1):
            began = time.perf_counter()
            for images in prefetch(chunks, lambda paths: [encoder.prepare(path) for path in paths], _workers(), False):
                model.generate_tokens([[Media("image", image)] for image in images], max_tokens=20)
            _wait(work)
            if i:
                rates.append(len(files) / (time.perf_counter() - began))
    return [Row("captions end to end", statistics.median(rates), "images/s", 230, min(rates), max(rates))]


def input_stall(_: int, work: Work = FULL) -> list[Row]:
    """The fraction of time that a consumer of 100 samples per second waits for its input."""
    words = ("lm.weights='bundled:tiny'", "inputs.image.encoder.weights=false")  # a tokenizer that is always available
    with photos(work) as folder:
        recipe = Recipe.load("magma_base", (*work.overrides, *words, f"train.batch_size={work.batch}"))
        source = {"use": "captions", "path": str(folder), "split": "train"}
        recipe = Recipe.load({**recipe.model_dump(mode="json", exclude_none=True), "data": {"train": [source]}})
        model = magma.assemble(recipe, device="meta")
        part, config = recipe.part("data.train.0")
        split = (work.micro, work.batch // work.micro)
        loader = make_loader(recipe, model.collator(256, 8), 0, 1, *split, workers=_workers(), pin=work.device != "cpu")
        batches = loader.training(Mixture([part(config, 0)], [1.0]), 0)
        waited = total = 0.0
        for i in range(work.steps):
            began = time.perf_counter()
            next(batches)
            if i > 1:  # the workers have started
                waited += time.perf_counter() - began
            time.sleep(max(0.0, work.batch / work.pace - (time.perf_counter() - began)))
            total += time.perf_counter() - began if i > 1 else 0.0
    stall = 100 * waited / total
    return [Row("input stall at 100 samples/s (at most)", stall, "%", 2, stall, stall)]
