"""Former public names: for code that uses them, and for parts of third parties that override them."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import magma
from magma import BatchLayout, Encoder, Features, PartConfig, Prediction, Prefix, Question, Task, testing
from magma.deprecation import RenamedMember
from magma.interfaces import KINDS
from tests.toys import ToyEncoder, ToyLM, ToyPrefix, ToyTask


def renamed(old: str, new: str) -> Any:
    return pytest.warns(DeprecationWarning, match=re.escape(f"`{old}` is now called `{new}`"))


def toy_model() -> magma.Magma:
    encoder, lm = ToyEncoder.build(), ToyLM.build()
    return magma.Magma(lm, {"n": magma.Input(encoder, ToyPrefix.build(encoder.dim, encoder.length, lm.dim))})


# Code that uses a former name


@pytest.mark.parametrize(("old", "new"), magma._RENAMED.items())
def test_former_exports(old: str, new: str) -> None:
    with renamed(f"magma.{old}", new):
        assert getattr(magma, old) is getattr(magma, new)
    assert old not in magma.__all__


@pytest.mark.parametrize(("old", "new"), testing._RENAMED.items())
def test_former_exports_of_testing(old: str, new: str) -> None:
    with renamed(f"magma.testing.{old}", new):
        assert getattr(testing, old) is getattr(testing, new)
    with pytest.raises(AttributeError, match=r"'magma\.testing' has no attribute 'other'"):
        _ = testing.other


def test_former_methods() -> None:
    encoder = ToyEncoder.build()
    with renamed("ToyEncoder.blank", "dummy_item"):
        assert torch.equal(encoder.blank(), encoder.dummy_item())
    with renamed("ToyEncoder.size", "num_features"):
        assert encoder.size(encoder.dummy_item()) == encoder.num_features(encoder.dummy_item())
    model = toy_model()
    with renamed("Magma.ways", "input_modules"):
        assert model.ways() == model.input_modules()
    with renamed("Magma.evaluating", "eval_mode"), model.evaluating():
        assert not model.training
    with renamed("ToyLM.readable", "num_embeddings"):
        assert model.lm.readable == 257


def test_former_class_attributes(tmp_path: Path) -> None:
    with renamed("ToyTask.primary", "primary_metric"):
        assert ToyTask.primary == "count_accuracy"
    with renamed("ToyEncoder.trial", "check_inputs"):
        assert isinstance(ToyEncoder.trial(tmp_path), magma.CheckInputs)


def test_former_fields_of_a_layout() -> None:
    zero = torch.zeros(1, 1, dtype=torch.long)
    with renamed("BatchLayout(first=)", "first_scored"):
        layout: Any = BatchLayout(zero, zero[0], zero[0], first=1)  # type: ignore[call-arg]
    with renamed("BatchLayout.first", "first_scored"):
        assert layout.first == layout.first_scored == 1
    with renamed("BatchLayout(segments=)", "sequence_ids"):
        assert replace(layout, segments=zero).sequence_ids is zero


def test_former_arguments() -> None:
    with renamed("Magma.collator(multiple=)", "pad_to_multiple_of") as seen:
        collator = toy_model().collator(multiple=8)  # type: ignore[call-arg]
    assert collator.pad_to_multiple_of == 8
    assert seen[0].filename == __file__
    with renamed("Program.group(about=)", "help"):
        group = magma.Program().group("data", about="Data.")  # type: ignore[call-arg]
    assert group.info.help == "Data."
    inputs = magma.CheckInputs()
    with renamed("run_checks(trial=)", "check_inputs"):
        assert testing.run_checks(ToyEncoder, trial=inputs)  # type: ignore[call-arg]
    with renamed("PartUnderTest(trial=)", "check_inputs"):
        assert testing.PartUnderTest(ToyEncoder, trial=inputs).inputs_to_check is inputs  # type: ignore[call-arg]


def test_every_new_name_exists() -> None:
    for kind in KINDS.values():
        for klass in kind.__mro__:
            for member in vars(klass).values():
                if isinstance(member, RenamedMember):
                    assert any(
                        member.new in vars(one) or member.new in inspect.get_annotations(one) for one in klass.__mro__
                    )


# Parts that override a former name


def old_encoder() -> type[Any]:
    class OldEncoder(Encoder):
        name = "old"
        modality = "number"

        def __init__(self, config: PartConfig) -> None:
            super().__init__(config)
            self.dim, self.length = 2, 3
            self.scale = nn.Linear(1, 2)

        def accepts(self, raw: Any) -> bool:
            return isinstance(raw, int)

        def prepare(self, raw: Any, rng: Any = None) -> Tensor:
            return torch.full((1,), float(raw))

        def blank(self) -> Tensor:
            return torch.zeros(1)

        def largest(self) -> Tensor:
            return super().largest() + 1

        def size(self, prepared: Tensor) -> int:
            return super().size(prepared) - 1 + prepared.size(0)

        def forward(self, x: Tensor) -> Features:
            return Features(self.scale(x)[:, None])

        @classmethod
        def trial(cls, folder: Path) -> Any:
            return replace(super().trial(folder), good=(1, 2))

    return OldEncoder


def test_an_encoder_with_former_names(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="is now called") as caught:
        part = old_encoder()
    messages = [str(one.message) for one in caught]
    assert len(messages) == 4
    assert "`OldEncoder.blank` is now called `dummy_item`" in messages
    assert {one.filename for one in caught} == {__file__}
    assert not part.__abstractmethods__
    encoder = part.build()
    assert torch.equal(encoder.dummy_item(), torch.zeros(1))
    with renamed("OldEncoder.largest", "max_size_item"):  # its super().largest()
        assert torch.equal(encoder.max_size_item(), torch.ones(1))
    with renamed("OldEncoder.size", "num_features"):
        assert encoder.num_features(torch.zeros(4)) == 6
    with renamed("OldEncoder.size", "num_features"):
        assert encoder.size(torch.zeros(4)) == 6
    with renamed("OldEncoder.trial", "check_inputs"):
        assert part.check_inputs(tmp_path).good == (1, 2)


def test_overrides_of_overrides() -> None:
    with pytest.warns(DeprecationWarning, match="is now called"):  # noqa: PT031

        class Half(Prefix):
            def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
                super().__init__(config, encoder_dim, encoder_length, dim)
                self.length = 8

            def size(self, features: int) -> int:  # type: ignore[override]
                return int(super().size(features)) // 2

            def forward(self, features: Features) -> Features:
                return features

        class Quarter(Half):
            def size(self, features: int) -> int:
                return super(Quarter, self).size(features) // 2  # noqa: UP008

    class Eighth(Quarter):  # new over old
        def num_embeddings(self, features: int) -> int:
            return super().num_embeddings(features) // 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert Half.build(1, 1, 1).num_embeddings(1) == 4
        assert Quarter.build(1, 1, 1).num_embeddings(1) == 2
        assert Eighth.build(1, 1, 1).num_embeddings(1) == Eighth.build(1, 1, 1).size(1) == 1  # type: ignore[misc]


def test_a_task_with_former_names() -> None:
    with pytest.warns(DeprecationWarning, match="is now called"):

        class OldTask(Task):
            name = "old"
            primary = "right"  # type: ignore[assignment]

            def __init__(self, config: PartConfig, seed: int) -> None:
                super().__init__(config, seed)

            def examples(self, split: str, shots: int, seed: int) -> Iterator[Question]:  # type: ignore[override]
                yield Question("1", ["What?"], "x")

            def extract(self, question: Question, output: str) -> str:  # type: ignore[override]
                return super().extract(question, output).strip()  # type: ignore[no-any-return]

            def judge(self, prediction: Prediction) -> tuple[str, float]:  # type: ignore[override]
                return prediction.text, float(prediction.text == prediction.question.answer)

            def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
                return {"right": sum(self.score_one(one)[1] for one in predictions) / len(predictions)}  # type: ignore

    task = OldTask(PartConfig(), 0)
    (question,) = task.questions("test", 0, 0)
    with renamed("OldTask.extract", "postprocess"):
        assert task.postprocess(question, " x ") == "x"
    assert task.primary_metric == "right"
    assert task.score([Prediction(question, "x")]) == {"right": 1.0}


def test_mixins_and_properties() -> None:
    class Words:
        def blank(self) -> Tensor:
            return torch.ones(1)

    with pytest.warns(DeprecationWarning, match="is now called"):  # noqa: PT031

        class Mixed(Words, Encoder): ...

        class Model(ToyLM):
            @property
            def readable(self) -> int:  # type: ignore[override]
                return int(super().readable) - 1

    assert Mixed.dummy_item is Words.blank
    with renamed("Model.readable", "num_embeddings"):
        assert Model.build().num_embeddings == 256


def test_a_new_part_may_use_a_former_name_for_something_else() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)

        class Sized(ToyEncoder):
            size = 4  # type: ignore[assignment]

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.largest = 5

        class Headed(ToyLM):
            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.head = nn.Linear(2, 2)  # type: ignore[assignment]

        assert (Sized.build().size, Sized.build().largest) == (4, 5)
        assert isinstance(Headed.build().head, nn.Linear)
        assert Sized.build().num_features(torch.zeros(2)) == ToyEncoder.build().num_features(torch.zeros(2))
