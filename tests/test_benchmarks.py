"""The peers compute what we do, the published one what its authors' code did; the command writes its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_files import NAMES, TEXT, Golden

from benchmarks import causal, gpu, peers
from benchmarks.__main__ import GPU_TABLES, TABLES, labels_at_once
from magma import Magma

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_published_peer_passes_the_golden_files(name: str) -> None:
    golden = Golden.read(name)
    model = golden.from_parts()
    published = peers.Published(model)
    images, captions = golden.tensors["in/images"], golden.tensors["in/captions"]
    expected = golden.tensors["out/logits"]
    with torch.no_grad():
        prefix = model.input_modules()["image"](images).values
        logits = published.logits(prefix, captions)[:, : prefix.shape[1] + TEXT]
    assert (logits - expected).abs().max() <= 1e-5
    loss = published(images, list(captions))
    assert abs(loss.item() - golden.tensors["out/loss"].item()) <= 1e-6
    loss.backward()
    sizes = golden.sizes()
    norms = {sizes.reference(n): p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    for key, norm in golden.group("gradnorm/").items():
        assert norms[key] == pytest.approx(norm.item(), rel=1e-4, abs=1e-9)


def gradients(model: Magma, loss: torch.Tensor) -> list[torch.Tensor]:
    wanted = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, wanted)]


def test_all_three_train_the_same_model() -> None:
    model = peers.build(dim=96, layers=2, vocab=64, context=256)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    data = peers.examples(3, 64)
    media, captions = peers.tensors(data)
    mine = gradients(model, peers.ours(model, data))
    for theirs in (peers.Published(model)(media, captions), peers.ByHand(model)(media, captions)):
        for one, other in zip(mine, gradients(model, theirs), strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


TINY = {"dim": 48, "layers": 2, "heads": 6, "key_heads": 2, "inner": 64}


@pytest.mark.parametrize("family", causal.FAMILIES)
def test_causal_and_the_library_train_the_same_model(family: str) -> None:
    model = causal.build(family, 64, TINY)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    data = peers.examples(3, 64)
    mine = gradients(model, peers.ours(model, data))
    theirs = gradients(model, peers.ByHand(model, attention="self_attn")(*peers.tensors(data)))
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_causal_and_the_library_generate_the_same() -> None:
    model = causal.build("llama", 64, TINY, sublayers=()).eval()
    image = peers.Media("grid", torch.randn(144, 288, generator=torch.Generator().manual_seed(0)))
    prompts = [[image, peers.Tokens(torch.arange(3, 6 + i))] for i in range(3)]
    row = causal.generation("questions", model, prompts, target=1.5, count=1)
    assert row.low <= row.value <= row.high


def test_packed_rows_give_the_same_loss_and_gradients() -> None:
    model = peers.build(dim=96, layers=2, vocab=64, context=1024)
    collator = model.collator()
    encoded = [collator.encode_example(example) for example in peers.examples(9, 64)]
    padded, packed = collator.pad(encoded), collator.pack(encoded, 600)
    assert len(packed.tokens) < len(padded.tokens)
    assert packed.layout.sequence_ids is not None
    assert sorted(packed.labels.tolist()) == sorted(padded.labels.tolist())
    assert sorted(packed.names) == sorted(padded.names)
    for one, other in zip(gradients(model, model(padded)), gradients(model, model(packed)), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_labels_at_once_are_those_of_the_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    captions = torch.randint(0, 9, (20, 40), generator=draw)
    assert torch.equal(labels_at_once(captions, 7, 3), peers.labels_by_loop(captions, 7, 3))


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "labels", "checkpoint_size", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], check=True, capture_output=True, text=True, cwd=ROOT
    )
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"torch", "date", "cores", "rows"} <= found.keys()
    for row in found["rows"]:
        assert row.keys() == {"name", "value", "unit", "target", "low", "high"}
        assert row["low"] <= row["value"] <= row["high"]
        assert row["name"] in done.stdout
    assert [row["name"] for row in found["rows"]] == ["labels", "checkpoint_size"]
    assert found["rows"][1]["value"] >= 16


def test_every_table_says_what_it_measures() -> None:
    assert all(table.__doc__ for table in (*TABLES.values(), *GPU_TABLES.values()))


SMALL = gpu.Work(
    overrides=(
        *("lm.layers=2", "lm.dim=64", "lm.heads=4", "lm.rotary_dim=8", "lm.vocab=300", "lm.eos=299", "lm.context=96"),
        *("inputs.image.encoder={ use = 'clip', layers = [1, 1, 1, 1], width = 8, image_size = 64 }",),
        "train.precision='fp32'",
    ),
    device="cpu",
    batch=4,
    micro=2,
    published=2,
    by_hand=2,
    decode=(1, 2),
    new_tokens=3,
    captions=4,
    photo=(80, 60),
    pace=400.0,
    steps=4,
)


@pytest.mark.parametrize("name", list(GPU_TABLES))
def test_the_gpu_tables_run_at_small_sizes(name: str) -> None:
    rows = GPU_TABLES[name](1, SMALL)  # type: ignore[call-arg]
    assert rows
    assert all(0 <= row.low <= row.value <= row.high and row.target for row in rows)


def test_the_gpu_tables_peers_train_the_same_model() -> None:
    """On one example each, where padding and the mean over targets are the same."""
    model = gpu.build(SMALL).eval()
    (example,) = gpu.examples(model, 1)
    media, caption = example.segments[0].value[None], [example.segments[1].ids]  # type: ignore[union-attr]
    mine = gradients(model, peers.ours(model, [example]))
    for theirs in (peers.Published(model)(media, caption), peers.ByHand(model)(media, caption)):
        for one, other in zip(mine, gradients(model, theirs), strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))
