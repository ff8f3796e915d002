"""The trainer: what a step is, what is learnt, what is kept, and going on after an interruption."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from safetensors.torch import load_file
from toys import RECIPE, ToyAdapter, ToyEncoder, ToySource

import magma
from magma import Example, InputError, Recipe, TooLong, TrainingError, checkpoint
from magma.data.loader import RankLoader
from magma.data.mixture import Mixture
from magma.manifest import read_manifest
from magma.plan import Costs, split_batch
from magma.schedule import lr_multiplier
from magma.training.progress import Callbacks, Progress
from magma.training.train import train

pytestmark = [
    pytest.mark.usefixtures("toys"),
    pytest.mark.filterwarnings(
        "ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning"
    ),  # DeepSpeed 0.19.8 (ZeRO 3)
]


def recipe(overrides: tuple[str, ...] = (), **changes: Any) -> Recipe:
    return Recipe.load({**copy.deepcopy(RECIPE), **changes}, overrides)


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_training_learns_and_keeps_frozen_weights(tmp_path: Path) -> None:
    result = train(recipe(("train.steps=150", "train.lr=2e-2")), tmp_path)
    found = losses(tmp_path)
    assert len(found) == 150
    assert found[-1] < 0.3 * found[0]
    assert result.finished
    assert len(result.frozen) == 10
    assert result.changed == []
    before, after = magma.assemble(recipe()), magma.load(tmp_path)
    assert all(torch.equal(t, after.frozen_tensors()[n]) for n, t in before.frozen_tensors().items())
    changed = {n for n, t in before.trained_tensors().items() if not torch.equal(t, after.trained_tensors()[n])}
    assert changed == before.trained_tensors().keys()


def test_accumulation_and_a_plain_loop_give_the_same_weights(tmp_path: Path) -> None:
    changes = ("train.steps=3", "train.schedule={ use = 'constant' }", "inputs.number.trainable=false")
    train(recipe(changes), tmp_path / "whole")
    train(recipe((*changes, "train.micro_batch_size=1")), tmp_path / "split")
    whole, split = magma.load(tmp_path / "whole"), magma.load(tmp_path / "split")
    model = magma.assemble(recipe(changes)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    mixture = Mixture([ToySource(ToySource.Config(), 0)], [1.0])
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(model.collator().batch(mixture.take(4))).backward()
        optimizer.step()
    for name, tensor in model.trained_tensors().items():
        assert torch.allclose(tensor, whole.trained_tensors()[name], atol=1e-5), name
        assert torch.allclose(tensor, split.trained_tensors()[name], atol=1e-5), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_gives_the_same_losses(tmp_path: Path, stage: int) -> None:
    changes = ("inputs.number.trainable=false",)
    train(recipe(changes), tmp_path / "plain")
    train(recipe(changes, deepspeed={"zero_optimization": {"stage": stage}}), tmp_path / "zero")
    assert losses(tmp_path / "zero") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert magma.load(tmp_path / "zero").generate([2, "is"], max_tokens=2) is not None


def test_each_part_learns_at_its_own_rate(tmp_path: Path) -> None:
    changes = ("inputs.number.lr=1e-3", "adapters.mlp.lr=5e-2", "train.steps=3", "train.warmup_steps=2")
    train(recipe(changes), tmp_path)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"lr"' in line]
    assert rates[0] == pytest.approx(
        {"inputs.number.encoder": 5e-4, "inputs.number.prefix": 5e-3, "adapters.mlp": 2.5e-2}
    )
    assert rates[1]["inputs.number.prefix"] == pytest.approx(1e-2)


def test_schedules() -> None:
    train_table = recipe(("train.steps=11", "train.warmup_steps=0")).train
    assert train_table is not None
    assert [lr_multiplier(train_table, step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.55, 0.1])
    warm = train_table.model_copy(update={"warmup_steps": 4})
    assert [lr_multiplier(warm, step) for step in (0, 1, 3, 4, 10)] == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.1])
    linear = recipe(("train.steps=11", "train.schedule={use='linear'}")).train
    assert linear is not None
    assert [lr_multiplier(linear, step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])


def test_a_partial_last_batch_is_a_step(tmp_path: Path) -> None:
    changes = ("train.samples=10", "train.micro_batch_size=2", "inputs.number.trainable=false")
    raw = copy.deepcopy(RECIPE)
    del raw["train"]["steps"]
    result = train(Recipe.load(raw, changes), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == 3
    assert [row["samples"] for row in rows if "samples" in row] == [4, 4, 2]


def test_resume_gives_the_same_losses_and_weights(tmp_path: Path) -> None:
    changes = ("train.steps=8",)
    train(recipe(changes), tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = train(recipe(changes), tmp_path / "parts", callbacks=Callbacks(step=interrupt))
    assert not stopped.finished
    assert stopped.steps == 3
    assert stopped.folder.name == "step-00000003"
    result = train(recipe(changes), tmp_path / "parts", resume=True)
    assert result.finished
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ends = [
        load_file(next((tmp_path / run / "checkpoints").glob("*8")) / "trained.safetensors")
        for run in ("whole", "parts")
    ]
    assert all(torch.equal(t, ends[1][name]) for name, t in ends[0].items())


@pytest.mark.parametrize("before", [("fp32", 2), ("bf16", 2), ("fp32", 3)])
@pytest.mark.parametrize("after", [("fp32", 0), ("bf16", 1)])
def test_it_resumes_with_another_precision_and_stage(
    tmp_path: Path, before: tuple[str, int], after: tuple[str, int]
) -> None:
    """tests/test_resume.py has all pairs."""

    def run(kind: tuple[str, int], steps: int, out: Path, resume: bool = False) -> None:
        changes = (f"train.steps={steps}", f"train.precision={kind[0]}", "train.schedule={ use = 'constant' }")
        train(recipe(changes, deepspeed={"zero_optimization": {"stage": kind[1]}}), out, resume=resume)

    run(("fp32", 0), 4, tmp_path / "whole")
    run(before, 2, tmp_path / "parts")
    run(after, 4, tmp_path / "parts", resume=True)
    exact = before[0] == after[0] == "fp32"
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5 if exact else 1e-2)


def test_half_precision_resumes_in_float32_from_its_copies(tmp_path: Path) -> None:
    """Not from the rounded weights."""
    train(recipe(("train.steps=2", "train.precision=bf16")), tmp_path)
    copies = load_file(tmp_path / "checkpoints/step-00000002/state/optimizer.safetensors")
    train(recipe(("train.steps=3", "train.lr=1e-12")), tmp_path, resume=True)
    for name, p in magma.load(tmp_path).named_parameters():
        if p.requires_grad:
            assert torch.allclose(p, copies[f"{name}.master"], rtol=0, atol=1e-9), name


def test_intermediate_checkpoints_are_pruned(tmp_path: Path) -> None:
    train(recipe(("train.checkpoint_every=1", "train.keep_checkpoints=3")), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-0000000{n}" for n in (4, 5, 6)]
    assert magma.load(tmp_path / "checkpoints/step-00000004").logits([1]).shape == (2, 257)


def test_init_checkpoint_starts_from_another_run(tmp_path: Path) -> None:
    train(recipe(("train.steps=100", "train.lr=2e-2")), tmp_path / "first")
    train(recipe(init={"checkpoint": str(tmp_path / "first")}), tmp_path / "second")
    assert losses(tmp_path / "second")[0] < 0.5 * losses(tmp_path / "first")[0]


def test_evaluation_loss_is_recorded(tmp_path: Path) -> None:
    train(recipe(("train.evaluate_every=2",)), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "evaluation_loss" in row] == [2, 4, 6]
    model = magma.load(tmp_path)
    source = ToySource(ToySource.Config(), 0)
    expected = model.loss(model.collator().batch([example for example, _ in source.iterate()])).item()
    assert [row["evaluation_loss"] for row in rows if "evaluation_loss" in row][-1] == pytest.approx(expected, rel=1e-4)


def test_deepspeeds_monitor_writes(tmp_path: Path) -> None:
    monitor = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path / "csv"), "job_name": "toy"}}
    train(recipe(deepspeed=monitor), tmp_path / "run")
    assert list((tmp_path / "csv").rglob("*.csv"))


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_bf16_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    said: list[str] = []
    changes = ("train.precision=bf16", "train.steps=60", "train.lr=2e-2")
    train(recipe(changes), tmp_path, callbacks=Callbacks(note=said.append))
    assert ('given "bf16", which this CPU has no instructions for' in str(said)) == (capability == "AVX2")
    assert losses(tmp_path)[-1] < 0.6 * losses(tmp_path)[0]
    assert magma.load(tmp_path).dtype == torch.bfloat16


def test_runs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no \[train\] table"):
        train(recipe(train=None), tmp_path)
    with pytest.raises(TrainingError, match="nothing to train on"):
        train(recipe(data={}), tmp_path)
    with pytest.raises(TrainingError, match="nothing to train: no input and no adapter"):
        train(recipe(inputs={}, adapters={}, data={"train": [{"use": "counting", "text_only": True}]}), tmp_path)
    with pytest.raises(TrainingError, match='given "fp16"; allowed on a CPU'):
        train(recipe(("train.precision=fp16",)), tmp_path)
    with pytest.raises(TooLong, match="counting 0 needs"):
        train(recipe(("train.max_length=2",)), tmp_path)


def test_examples_that_do_not_fit_are_skipped_and_counted(tmp_path: Path) -> None:
    # a number n fills n + 1 positions and "is" two: of every four examples one has a target among the first four
    result = train(recipe(("train.max_length=4", "train.too_long=skip", "inputs.number.trainable=false")), tmp_path)
    assert result.skipped == 18


def test_examples_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ToyEncoder.prepare

    def prepare(self: ToyEncoder, raw: Any, rng: random.Random | None = None) -> torch.Tensor:
        if raw == 3:
            raise InputError("given 3; it is torn")
        return plain(self, raw, rng)

    monkeypatch.setattr(ToyEncoder, "prepare", prepare)
    with pytest.raises(InputError, match="it is torn"):
        train(recipe(), tmp_path / "ends")
    result = train(recipe(("train.unreadable=skip",)), tmp_path / "goes on")
    assert (result.finished, result.skipped, result.skipped_steps) == (True, 0, 0)
    found = skipped(tmp_path / "goes on")
    assert result.unreadable == len(found) == 6
    assert found[0] == {
        "step": 1,
        "example": 3,
        "name": "counting 3",
        "reason": "counting 3: number: given 3; it is torn",
    }


def test_text_that_no_tokenizer_accepts_is_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "WORDS", ("zero", "one", "two", "three \ud83d"))
    with pytest.raises(InputError, match=r"counting 3: its text has \\ud83d at character 8, half of a surrogate pair"):
        train(recipe(), tmp_path / "ends")
    assert train(recipe(("train.unreadable=skip",)), tmp_path / "goes on").unreadable == 6
    assert all("half of a surrogate pair" in row["reason"] for row in skipped(tmp_path / "goes on"))


def test_a_run_of_an_earlier_version_keeps_its_way_with_texts(tmp_path: Path) -> None:
    def stop(now: Progress) -> None:
        if now.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    folder = train(recipe(), tmp_path, callbacks=Callbacks(step=stop)).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("text") == {"beginning": [], "joined": True}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    resumed = train(recipe(), tmp_path, resume=True).folder
    assert json.loads((resumed / "manifest.json").read_text())["text"] == {"beginning": [], "joined": False}


def skipped(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]


def torn(monkeypatch: pytest.MonkeyPatch, *positions: int) -> None:
    """The source gives problems in place of these rows of each pass."""
    plain = ToySource.iterate

    def iterate(self: ToySource, state: dict[str, Any] | None = None) -> Iterator[tuple[Example, dict[str, Any]]]:
        for example, after in plain(self, state):
            row = int(example.name.split()[1])
            if row in positions:
                example = Example([], example.name, problem=f"row {row} is no row")
            yield example, after

    monkeypatch.setattr(ToySource, "iterate", iterate)


def test_a_row_that_cannot_be_read_is_skipped_and_its_place_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn(monkeypatch, 1, 6)
    with pytest.raises(InputError, match="row 1 is no row"):
        train(recipe(), tmp_path / "ends")
    loaded = recipe(("train.unreadable=skip", "train.steps=8", "train.checkpoint_every=2"))
    train(loaded, tmp_path / "whole")
    assert [(one["step"], one["example"]) for one in skipped(tmp_path / "whole")] == [
        (step, 4 * (step - 1) + (1 if step % 2 else 2)) for step in range(1, 9)
    ]

    def fail(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt  # as sudden as a kill: the last checkpoint is that of step 4

    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(loaded, out, callbacks=Callbacks(step=fail))
    assert len(skipped(out)) == 5
    result = train(loaded, out, resume=True)
    assert (result.unreadable, result.skipped_steps) == (8, 0)
    assert skipped(out) == skipped(tmp_path / "whole")
    assert losses(out) == losses(tmp_path / "whole")


def test_too_many_unreadable_examples_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn(monkeypatch, 2)
    changes = ("train.unreadable=skip", "train.steps=40", "train.checkpoint_every=10")
    with pytest.raises(TrainingError) as raised:
        train(recipe(changes), tmp_path)
    assert str(raised.value) == (
        "step 25: 13 of the 100 examples so far cannot be read, and train.max_unreadable allows a fraction of 0.01; "
        f"{tmp_path / 'skipped.jsonl'} lists all:"
        "\n  - row 2 is no row\n  - row 2 is no row\n  - row 2 is no row"
    )
    assert len(skipped(tmp_path)) == 13
    assert checkpoint.find_checkpoint(tmp_path).name == "step-00000020"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000020"]
    result = train(recipe((*changes, "train.max_unreadable=0.13")), tmp_path / "allowed")
    assert (result.finished, result.unreadable) == (True, 20)


def test_a_step_of_nothing_but_what_cannot_be_read_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn(monkeypatch, 4, 5, 6, 7)
    result = train(recipe(("train.unreadable=skip",)), tmp_path)
    assert (result.finished, result.skipped_steps, result.unreadable) == (True, 3, 12)
    assert [row["loss"] is None for row in rows_of(tmp_path) if "loss" in row] == [False, True] * 3


@pytest.mark.parametrize("changes", [(), ("train.max_unreadable=1.0", "train.steps=30", "train.max_skipped_steps=5")])
def test_a_run_that_can_read_nothing_ends_with_the_reasons(
    changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a success nor a matter of the learning rate."""
    torn(monkeypatch, *range(8))
    with pytest.raises(TrainingError) as raised:
        train(recipe(("train.unreadable=skip", *changes)), tmp_path)
    steps = 5 if changes else 6
    assert str(raised.value) == (
        f"step {steps}: no example of the last {steps} steps could be read, so that nothing was learnt; "
        f"{tmp_path / 'skipped.jsonl'} lists all {4 * steps}:"
        "\n  - row 0 is no row\n  - row 1 is no row\n  - row 2 is no row"
    )
    assert not (tmp_path / "checkpoints").exists()


def test_weights_from_before_unreadable_steps_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn(monkeypatch, *range(4, 40))
    longer = {"train": [{"use": "counting", "length": 40}]}
    changes = ("train.unreadable=skip", "train.steps=9", "train.max_skipped_steps=3")
    with pytest.raises(TrainingError, match="step 4: no example of the last 3 steps could be read") as raised:
        train(recipe(changes, data=longer), tmp_path)
    assert f"the weights from before them are in {checkpoint.find_checkpoint(tmp_path)}; " in str(raised.value)


def test_an_evaluation_set_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn(monkeypatch, 8, 9)
    data = {"train": [{"use": "counting"}], "evaluation": [{"use": "counting", "length": 12}]}
    said: list[str] = []
    train(recipe(("train.unreadable=skip",), data=data), tmp_path / "some", callbacks=Callbacks(say=said.append))
    assert (
        "step 6: 2 of the 12 evaluation examples cannot be read and are left out:"
        "\n  - row 8 is no row\n  - row 9 is no row"
    ) in said
    torn(monkeypatch, *range(8, 12))
    data["evaluation"] = [{"use": "counting", "length": 12}]
    monkeypatch.setattr("magma.data.loader.RankLoader.encode", _all_torn(RankLoader.encode))
    with pytest.raises(
        TrainingError, match="step 6: 12 of the 12 evaluation examples cannot be read, and train"
    ) as raised:
        train(recipe(("train.unreadable=skip",), data=data), tmp_path / "all")
    assert f"the weights are in {checkpoint.find_checkpoint(tmp_path / 'all')}" in str(raised.value)


def _all_torn(plain: Any) -> Any:
    """Nothing that is encoded without a random generator, as in evaluations, can be read."""

    def encode(self: RankLoader, example: Example, rng: random.Random | None = None) -> Any:
        return plain(self, example, rng) if rng else InputError(f"{example.name} is torn")

    return encode


def test_workers_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Media and problems travel to them as they are."""

    def prepare(*_: Any) -> torch.Tensor:
        raise InputError(f"process {os.getpid()}")

    monkeypatch.setattr(ToyEncoder, "prepare", prepare)
    with pytest.raises(TrainingError, match="no example of the last 2 steps could be read"):
        train(recipe(("train.unreadable=skip", "train.steps=2", "train.workers=1")), tmp_path)
    processes = {one["reason"].split()[-1] for one in skipped(tmp_path)}
    assert len(processes) == 1
    assert str(os.getpid()) not in processes


def test_micro_batches_divide_the_global_batch() -> None:
    table = recipe(("train.batch_size=12", "train.micro_batch_size=3")).train
    assert table is not None
    assert split_batch(table, 1) == (3, 4)
    assert split_batch(table, 2) == (3, 2)
    with pytest.raises(TrainingError, match="train.batch_size: given 12; allowed with 5 processes: a multiple of 5"):
        split_batch(table, 5)
    with pytest.raises(TrainingError, match=r"train.micro_batch_size: given 3; .* divide evenly: 1, 2, 4"):
        split_batch(table, 3)


def rising(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Evaluations give these losses."""
    left = iter(values)
    monkeypatch.setattr("magma.training.trainer.Trainer.evaluate_loss", lambda _: next(left))


EARLY = ("train.steps=20", "train.evaluate_every=2", "train.early_stopping=2", "train.checkpoint_every=3")


def test_early_stopping_keeps_the_best_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rising(monkeypatch, [3.0, 1.0, 2.0, 1.5, 0.1])
    evaluated = {**copy.deepcopy(RECIPE["data"]), "evaluation": RECIPE["data"]["train"]}
    result = train(recipe(EARLY, data=evaluated), tmp_path / "early")
    assert (result.steps, result.finished, result.folder.name) == (8, True, "step-00000004")
    assert checkpoint.find_checkpoint(tmp_path / "early") == result.folder
    assert {path.name for path in result.folder.parent.iterdir()} <= {"step-00000002", "step-00000004"}
    assert read_manifest(result.folder).step == 4


def test_early_stopping_patience_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = {**copy.deepcopy(RECIPE["data"]), "evaluation": RECIPE["data"]["train"]}
    loaded = recipe(EARLY, data=evaluated)

    def stop(now: Progress) -> None:
        if now.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    rising(monkeypatch, [3.0, 1.0, 2.0])
    assert not train(loaded, tmp_path, callbacks=Callbacks(step=stop)).finished
    rising(monkeypatch, [1.5])
    result = train(loaded, tmp_path, resume=True)
    assert (result.steps, result.finished, result.folder.name) == (8, True, "step-00000004")


def test_early_stopping_needs_something_to_watch() -> None:
    with pytest.raises(magma.RecipeError, match="early_stopping needs train.evaluate_every"):
        recipe(("train.early_stopping=2",))
    data = {"train": RECIPE["data"]["train"]}
    with pytest.raises(magma.RecipeError, match=r"early_stopping needs a \[\[data.evaluation\]\]"):
        recipe(("train.early_stopping=2", "train.evaluate_every=2"), data=data)


def test_a_new_head_starts_fresh_on_an_old_checkpoint(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "first")
    init = {"checkpoint": str(tmp_path / "first")}
    with pytest.raises(magma.CheckpointError, match=r"adapters.*is not a tensor of this model|is not a tensor"):
        train(recipe(init=init, adapters={}), tmp_path / "fewer")
    head = {"use": "classes", "classes": ["odd", "even"]}
    data = {"train": [{"use": "counting", "labelled": True}]}
    result = train(recipe(("train.steps=40", "train.lr=2e-2"), init=init, head=head, data=data), tmp_path / "second")
    assert result.finished
    found = losses(tmp_path / "second")
    assert found[-1] < 0.5 * found[0]
    model = magma.load(tmp_path / "second")
    assert [max(p, key=p.__getitem__) for p in model.classify([[3], [2]])] == ["odd", "even"]
    assert all(sum(p.values()) == pytest.approx(1) for p in model.classify([[3], [2]]))
    with pytest.raises(magma.InputError, match="has a classification head: use classify"):
        model.generate([3])


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def meddle(monkeypatch: pytest.MonkeyPatch, steps: set[int], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change what the adapter gives, in these forward passes (counted from 1: steps, until the evaluation)."""
    calls = iter(range(1, 10**6))
    plain = ToyAdapter.forward

    def forward(self: ToyAdapter, x: torch.Tensor, sublayer: Any) -> torch.Tensor:
        y = plain(self, x, sublayer)
        return change(y) if self.training and next(calls) in steps else y

    monkeypatch.setattr(ToyAdapter, "forward", forward)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("micro", [4, 2])
def test_a_step_that_is_not_finite_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, micro: int
) -> None:
    """Neither the weights, nor the optimizer, nor BatchNorm's averages; the run goes on as if it had not been."""
    changes = (f"train.micro_batch_size={micro}", "train.gradient_clipping=1.0", "train.checkpoint_every=1")
    loaded = recipe((*changes, "train.keep_checkpoints=9"), deepspeed={"zero_optimization": {"stage": stage}})
    first = 1 + 8 // micro  # the third step's first micro-batch
    meddle(monkeypatch, {first}, lambda y: y * float("nan"))
    result = train(loaded, tmp_path)
    assert (result.steps, result.skipped_steps, result.changed) == (6, 1, [])
    rows = [row for row in rows_of(tmp_path) if "loss" in row]
    assert [row.get("skipped", False) for row in rows] == [False, False, True, False, False, False]
    assert rows[2]["loss"] is None
    assert all(row["loss"] > 0 for i, row in enumerate(rows) if i != 2)
    folders = [tmp_path / f"checkpoints/step-0000000{step}" for step in (2, 3, 4)]
    weights = [load_file(folder / "trained.safetensors") for folder in folders]
    states = [load_file(folder / "state/optimizer.safetensors") for folder in folders]
    for kept in (weights, states):
        assert all(torch.equal(t, kept[1][n]) for n, t in kept[0].items())
        assert not all(torch.equal(t, kept[2][n]) for n, t in kept[1].items())


def test_loss_spikes_are_skipped_with_spike_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meddle(monkeypatch, {4}, lambda y: 1000 * y)
    assert train(recipe(), tmp_path / "learnt").skipped_steps == 0
    meddle(monkeypatch, {4}, lambda y: 1000 * y)
    assert train(recipe(("train.spike_factor=3",)), tmp_path / "skipped").skipped_steps == 1
    ends = [losses(tmp_path / run) for run in ("learnt", "skipped")]
    assert ends[0][:4] == ends[1][:4]
    assert ends[0][3] > 3 * ends[0][2]
    assert ends[0][4] != ends[1][4]
    with pytest.raises(magma.RecipeError, match=r"train\.spike_factor: given 0\.5; allowed: .*greater than 1"):
        recipe(("train.spike_factor=0.5",))


def test_a_run_that_learns_nothing_any_more_ends_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("train.steps=20", "train.max_skipped_steps=3")
    meddle(monkeypatch, set(range(5, 100)), lambda y: y / 0)
    with pytest.raises(TrainingError, match=r"step 7: the last 3 steps were skipped.*max_skipped_steps is 3"):
        train(recipe(changes), tmp_path)
    monkeypatch.undo()
    assert magma.checkpoint.find_checkpoint(tmp_path).name == "step-00000007"


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """Files may grow to so many bytes, as on a disk that is full: the last good checkpoint stays, and goes on."""
    import resource

    changes = ("train.steps=8", "train.checkpoint_every=2")
    train(recipe(changes), tmp_path / "whole")

    def fill(now: Progress) -> None:
        if now.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2500, resource.RLIM_INFINITY))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            magma.CheckpointError, match=r"step-00000004 could not be written.*step-00000002 is the last"
        ):
            train(recipe(changes), tmp_path / "full", callbacks=Callbacks(step=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "full/checkpoints").iterdir()] == ["step-00000002"]
    assert train(recipe(changes), tmp_path / "full", resume=True).steps == 8
    ends = [tmp_path / run / "checkpoints/step-00000008/trained.safetensors" for run in ("whole", "full")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert losses(tmp_path / "full") == losses(tmp_path / "whole")


def test_workers_prepare_the_same_batches(tmp_path: Path) -> None:
    changes = ("train.steps=5", "train.evaluate_every=2")
    train(recipe(changes), tmp_path / "none")
    train(recipe((*changes, "train.workers=2")), tmp_path / "two")
    assert losses(tmp_path / "two") == losses(tmp_path / "none")
    kept = [
        {k: v for k, v in row.items() if not k.endswith("_s")}
        for run in ("none", "two")
        for row in rows_of(tmp_path / run)
    ]
    assert kept[: len(kept) // 2] == kept[len(kept) // 2 :]
    with pytest.raises(TooLong, match="counting 0 needs") as caught:
        train(recipe(("train.max_length=2", "train.workers=1")), tmp_path / "long")
    assert "Traceback" not in str(caught.value)


def test_interruption_with_prefetch_loses_no_example(tmp_path: Path) -> None:
    changes = ("train.steps=8", "train.workers=2")

    def stop(now: Progress) -> None:
        if now.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    train(recipe(("train.steps=8",)), tmp_path / "whole")
    assert train(recipe(changes), tmp_path / "parts", callbacks=Callbacks(step=stop)).steps == 3
    assert train(recipe(changes), tmp_path / "parts", resume=True).steps == 8
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_step_tells_speed_rates_and_memory(tmp_path: Path) -> None:
    told: list[Progress] = []
    costs = Costs(100.0, {"number": 7.0})
    train(recipe(), tmp_path, callbacks=Callbacks(step=told.append), costs=costs)
    assert [now.step for now in told] == [1, 2, 3, 4, 5, 6]
    assert all(now.memory > 2**20 and not now.skipped for now in told)
    assert all(now.flops_per_s is not None and now.useful_flops_per_s is not None for now in told)
    first = told[0]  # four numbers of 2 + 3 + 4 + 5 positions, their names and ends, in four rows of the longest
    useful = [now.samples_per_s / 4 * (100 * now.tokens_per_s / now.samples_per_s * 4 + 7 * 4) for now in told]
    assert [now.useful_flops_per_s for now in told] == pytest.approx(useful)
    assert (first.flops_per_s or 0) > (first.useful_flops_per_s or 0)
    assert all(now.tokens_per_s > 4 * now.samples_per_s for now in told)


def test_resume_refuses_a_checkpoint_without_state(tmp_path: Path) -> None:
    train(recipe(), tmp_path)
    state = tmp_path / "checkpoints/step-00000006/state"
    (state / "optimizer.safetensors").write_bytes(b"cut short")
    with pytest.raises(magma.CheckpointError, match=r"step-00000006 cannot be resumed from: .*was modified after"):
        train(recipe(), tmp_path, resume=True)
    manifest = state.parent / "manifest.json"
    older = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "state"}
    manifest.write_text(json.dumps(older))
    with pytest.raises(magma.CheckpointError, match=r"step-00000006 has no state to .* from: .*header"):
        train(recipe(), tmp_path, resume=True)
    (state / "trainer.json").write_text('{"step": 6')
    with pytest.raises(magma.CheckpointError, match=r"step-00000006 has no state to .* from"):
        train(recipe(), tmp_path, resume=True)
