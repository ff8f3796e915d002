"""The published code's own numbers: from parts, and through `magma import reference` and `magma.load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import GOLDEN, NAMES, TEXT, Golden
from magma_reference.convert import to_folder
from torch import Tensor

import magma
from magma import Example, Magma, Media, Tokens


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def prompts(golden: Golden, tokens: int) -> list[list[Any]]:
    """Each image as a prepared tensor, and the first tokens of its caption."""
    images, captions = golden.tensors["in/images"], golden.tensors["in/captions"]
    return [[image, caption[:tokens]] for image, caption in zip(images, captions, strict=True)]


def check_outputs(model: Magma, golden: Golden) -> None:
    with torch.no_grad():
        prefix = model.input_modules()["image"](golden.tensors["in/images"]).values
    assert largest(prefix - golden.tensors["out/prefix"]) <= 1e-5
    logits = torch.stack([model.logits(prompt) for prompt in prompts(golden, TEXT)])
    assert logits.shape == golden.tensors["out/logits"].shape
    assert largest(logits - golden.tensors["out/logits"]) <= 1e-5
    assert model.generate_tokens(prompts(golden, 3), max_tokens=8) == golden.tensors["out/greedy"].tolist()
    one = model.generate_tokens(prompts(golden, 3)[1], max_tokens=8)
    assert one == golden.tensors["out/greedy"][1].tolist()


def check_loss(model: Magma, golden: Golden) -> None:
    """The targets are the caption up to and with its first end-of-text."""
    examples = []
    for image, caption in zip(golden.tensors["in/images"], golden.tensors["in/captions"], strict=True):
        length = (caption == model.lm.eos).nonzero()[0, 0]
        examples.append(Example([Media("image", image), Tokens(caption[:length], target=True)]))
    loss = model.loss(model.collator().batch(examples))
    assert abs(loss.item() - golden.tensors["out/loss"].item()) <= 1e-6
    loss.backward()
    sizes = golden.sizes()
    norms = {sizes.reference(n): p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
    expected = golden.group("gradnorm/")
    assert norms.keys() == expected.keys()
    for name, norm in norms.items():
        assert norm.item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-9), name


def test_all_seven_are_here() -> None:
    assert len(NAMES) == 7


def test_from_parts(golden: Golden) -> None:
    model = golden.from_parts()
    check_outputs(model, golden)
    check_loss(model, golden)


@pytest.mark.parametrize("level", [True, False], ids=["module", "plain"])
def test_through_the_importer(golden: Golden, level: bool, tmp_path: Path) -> None:
    state = golden.group("state/")
    torch.save({"module": state} if level else state, tmp_path / "model.pt")
    to_folder(tmp_path / "model.pt", tmp_path / "model")
    model = magma.load(tmp_path / "model")
    assert model.dtype == torch.float32
    check_outputs(model, golden)
    check_loss(model, golden)


def test_the_half_precision_file(tmp_path: Path) -> None:
    golden = Golden.read("released_layout")
    file = GOLDEN / "mp_rank_00_model_states.pt"
    state = torch.load(file, weights_only=True)["module"]
    sizes = golden.sizes()
    rounded = golden.from_parts()
    rounded.load_state_dict({name: state[sizes.reference(name)].float() for name in rounded.state_dict()})
    to_folder(file, tmp_path / "model")
    half = magma.load(tmp_path / "model")
    assert half.dtype == torch.float16
    for name, tensor in half.state_dict().items():
        theirs = state[sizes.reference(name)]
        assert tensor.dtype == theirs.dtype
        assert torch.equal(tensor, theirs), name
    model = magma.load(tmp_path / "model", dtype=torch.float32)
    for prompt, expected in zip(prompts(golden, TEXT), golden.tensors["out/logits"], strict=True):
        logits = model.logits(prompt)
        assert largest(logits - rounded.logits(prompt)) <= 1e-5
        assert 0 < largest(logits - expected) < 0.05  # rounding shows, and no more
