"""How much memory there is, and batches that are halved when it runs out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import RECIPE, TightEncoder, ToyTask

import magma
from magma import Magma, OutOfMemory, PartConfig
from magma.system import memory
from magma.system.memory import BatchMapper, in_pieces, ran_out

PROMPTS: list[list[Any]] = [[0, "is"], [3, "is not"], [2, "is"], [1, "was"], [3, "is"]]


def build(rows: int, **more: Any) -> Magma:
    raw = copy.deepcopy({**RECIPE, **more})
    raw["inputs"]["number"]["encoder"] = {"use": "tight", "rows": rows, "when": "evaluation"}
    return magma.assemble(raw)


def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the batches that the encoder gets from now on."""
    seen: list[int] = []
    plain = TightEncoder.forward

    def forward(self: TightEncoder, x: torch.Tensor) -> Any:
        seen.append(len(x))
        return plain(self, x)

    monkeypatch.setattr(TightEncoder, "forward", forward)
    return seen


@pytest.mark.usefixtures("toys")
def test_generation_halves_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tight, roomy = build(2), build(9)
    seen = sizes(monkeypatch)
    assert tight.generate(PROMPTS, max_tokens=3) == roomy.generate(PROMPTS, max_tokens=3)
    assert seen == [5, 2, 2, 1, 5]
    assert tight.generate_tokens(PROMPTS, max_tokens=3) == roomy.generate_tokens(PROMPTS, max_tokens=3)


@pytest.mark.usefixtures("toys")
def test_likelihoods_halve_their_batch() -> None:
    texts = [" a", " bc", "", " def", " g"]
    found, whole = (build(rows).log_likelihood(PROMPTS, texts) for rows in (1, 9))
    assert [chance for chance, _ in found] == pytest.approx([chance for chance, _ in whole], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in whole]


@pytest.mark.usefixtures("toys")
def test_classification_halves_its_batch() -> None:
    head = {"use": "classes", "classes": ["odd", "even"]}
    found, whole = (build(rows, head=head).classify(PROMPTS) for rows in (2, 9))
    assert [scores["odd"] for scores in found] == pytest.approx([scores["odd"] for scores in whole], abs=1e-6)


@pytest.mark.usefixtures("toys")
def test_an_evaluation_does_not_try_again_what_was_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    task = ToyTask(PartConfig(), 0)
    whole = magma.evaluate(build(9), task)
    seen = sizes(monkeypatch)
    assert magma.evaluate(build(1), task) == whole
    assert seen[:6] == [4, 2, 1, 1, 1, 1]
    assert max(seen[6:], default=0) <= 4


@pytest.mark.usefixtures("toys")
def test_a_single_prompt_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(OutOfMemory, match=r"^memory ran out with a single prompt: toy out of memory\. Shorter prompts"):
        build(0).generate(PROMPTS)


def test_pieces() -> None:
    tried: list[int] = []

    def double(some: Sequence[int]) -> list[int]:
        tried.append(len(some))
        if len(some) > 3:
            raise MemoryError
        return [2 * one for one in some]

    assert in_pieces(range(7), double) == [2 * i for i in range(7)]
    assert tried == [7, 3, 3, 1]
    tried.clear()
    pieces = BatchMapper(8)
    assert pieces(range(4), double) == [0, 2, 4, 6]
    assert pieces(range(3), double) == [0, 2, 4]
    assert tried == [4, 2, 2, 2, 1]
    assert in_pieces([], double) == []

    def fail(_: Sequence[int]) -> list[int]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_pieces([1, 2], fail)


def test_what_counts_as_too_little_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out(raised.value)
    assert memory.memory_error_summary(raised.value).startswith(
        "DefaultCPUAllocator: can't allocate memory: you tried to alloc"
    )
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not ran_out(RuntimeError("shape mismatch"))
    assert not ran_out(ValueError("out of memory"))


def test_main_memory_is_the_containers_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.available("cpu") == 8_192_000_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.available("cpu") == 8_192_000_000
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.available("cpu") == 4000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.available("cpu") == 2000
