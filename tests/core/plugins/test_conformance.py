"""The conformance kit: sound parts pass, and each of many faults is found by the check that is there for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_lms.causal import Causal
from torch import Tensor, nn

import magma
from magma import (
    Adapter,
    BatchLayout,
    Callback,
    CallbackContext,
    CheckInputs,
    DataSource,
    Encoder,
    Example,
    Features,
    InputError,
    LossContext,
    PartConfig,
    PluginError,
    Prediction,
    Prefix,
    Question,
    SourceState,
    Task,
    Text,
    testing,
)


class Ears(Encoder):
    """Up to six numbers, one feature each, behind a zero of padding."""

    name = "ears"
    modality = "numbers"

    class Config(PartConfig):
        """`width` of the features."""

        width: int = 8

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dim, self.length = config.width, 6
        self.layer = nn.Linear(1, config.width)
        self.dropout = nn.Dropout(0.5)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        return CheckInputs({}, ([1.0, 2.0], [3.0, 4.0, 5.0], [0.5]), ([], ["a"], [1.0] * 7, [float("nan")]))

    def accepts(self, raw: Any) -> bool:
        return isinstance(raw, list)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        try:
            item = torch.tensor(raw, dtype=torch.float32).view(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"given {raw!r}; allowed: one to six numbers") from error
        if not 0 < len(item) <= 6 or not bool(item.isfinite().all()):
            raise InputError(f"given {raw!r}; allowed: one to six numbers")
        return item

    def dummy_item(self) -> Tensor:
        return torch.zeros(1)

    def max_size_item(self) -> Tensor:
        return torch.zeros(6)

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(items), batch_first=True, padding_value=float("-inf"))

    def num_features(self, prepared: Tensor) -> int:
        return len(prepared)

    def forward(self, x: Tensor) -> Features:
        real = x != float("-inf")
        values = self.dropout(self.layer(x.masked_fill(~real, 0)[..., None]))
        return Features(values * real[..., None], real.sum(-1))


class Double(Adapter):
    """The sublayer, and a linear map of what it was given."""

    name = "double"
    passes_input_through = True

    def __init__(self, config: PartConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d]."""
        return sublayer(x) + self.layer(x)


class Map(Prefix):
    """A linear map of each feature."""

    name = "map"

    def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = encoder_length
        self.layer = nn.Linear(encoder_dim, dim)

    def num_embeddings(self, features: int) -> int:
        return features

    def forward(self, features: Features) -> Features:
        return Features(self.layer(features.values), features.lengths)


class Letters(DataSource):
    """Ten letters in an order of their own each pass."""

    name = "letters"

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        state = state or {"pass": 0, "next": 0}
        order = list("abcdefghij")
        random.Random(f"{self.seed} {state['pass']}").shuffle(order)
        for i in range(state["next"], 10):
            after = {"pass": state["pass"], "next": i + 1} if i < 9 else {"pass": state["pass"] + 1, "next": 0}
            yield Example([Text("say "), Text(order[i], target=True)], order[i]), after


class Spell(Task):
    """Says a letter back."""

    name = "spell"
    primary_metric = "accuracy"

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        for letter in "abcd":
            yield Question(letter, ["x x\n"] * shots + [letter], letter)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return {"accuracy": sum(p.text == p.question.answer for p in predictions) / len(predictions)}


class Alarm(Callback):
    """Requests a stop at a spike of the loss."""

    name = "alarm"

    def __init__(self, config: PartConfig) -> None:
        super().__init__(config)
        self.average: float | None = None
        self.count = torch.zeros(1)

    def on_step_end(self, context: CallbackContext) -> None:
        loss = context.metrics["loss"]
        if loss is None:
            return
        if self.average is not None and loss > 3 * self.average:
            context.request_stop("a spike")
        else:
            self.average = loss
            self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average, self.count = state["average"], state["count"].clone()


class Pulled(Map):
    """Its embeddings are near the caption, by a factor that is learned."""

    name = "pulled"
    auxiliary_losses = ("distance",)

    def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.factor = nn.Parameter(torch.ones(1))

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        found = context.embeddings[context.input].values.mean(1)
        return {"distance": (self.factor * found - context.caption_embeddings()).square().mean()}


SOUND = (Ears, Double, Map, Pulled, Causal, Letters, Spell, Alarm)


@pytest.mark.parametrize("part", SOUND, ids=lambda part: part.name)
def test_a_sound_part_passes(part: type[magma.Part]) -> None:
    found = testing.run_checks(part)
    assert len(found) >= 5
    assert [f"{one.check}: {one.problem}" for one in found if one.problem] == []


test_one_line = testing.conformance(Double)


# One fault each


class WrongWidth(Ears):
    """Says another width than it gives."""

    def __init__(self, config: Ears.Config) -> None:
        super().__init__(config)
        self.dim = 9


class WrongLength(Ears):
    """Says fewer features than it gives."""

    def num_features(self, prepared: Tensor) -> int:
        return max(1, len(prepared) - 1)


class TooFew(Ears):
    """Gives more features than its length."""

    def __init__(self, config: Ears.Config) -> None:
        super().__init__(config)
        self.length = 2


class NaN(Ears):
    """Divides by the sum of what it sees, which is none in a blank."""

    def forward(self, x: Tensor) -> Features:
        found = super().forward(x)
        return Features(found.values / x.masked_fill(x == float("-inf"), 0).sum(-1)[:, None, None], found.lengths)


class Random(Ears):
    """Drops out in eval mode too."""

    def forward(self, x: Tensor) -> Features:
        found = super().forward(x)
        return Features(nn.functional.dropout(found.values, 0.5), found.lengths)


class Leak(Ears):
    """Learns although it is frozen."""

    def freeze(self) -> None:
        self.frozen = True
        self.train(False)


class StillTraining(Ears):
    """Does not stay in eval mode."""

    def train(self, mode: bool = True) -> StillTraining:
        nn.Module.train(self, mode)
        return self


class NotSaved(Ears):
    """Keeps a weight where no state_dict finds it."""

    def __init__(self, config: Ears.Config) -> None:
        super().__init__(config)
        self.offset = [float(torch.empty(1, device="cpu").normal_())]

    def forward(self, x: Tensor) -> Features:
        found = super().forward(x)
        return Features(found.values + self.offset[0], found.lengths)


class InPlace(Ears):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Features:
        found = super().forward(x)
        x.add_(1)
        return found


class Behind(Ears):
    """Keeps a tensor that no move takes along."""

    def __init__(self, config: Ears.Config) -> None:
        super().__init__(config)
        self.table = torch.ones(config.width, device="cpu")

    def forward(self, x: Tensor) -> Features:
        found = super().forward(x)
        return Features(found.values * self.table, found.lengths)


class Float32(Ears):
    """Always gives float32."""

    def forward(self, x: Tensor) -> Features:
        found = super().forward(x)
        return Features(found.values.float(), found.lengths)


class Mixes(Ears):
    """Takes the mean of the batch away."""

    def forward(self, x: Tensor) -> Features:
        found = super().forward(x)
        return Features(found.values - found.values.mean(), found.lengths)


class Unused(Ears):
    """Has a parameter that nothing depends on."""

    def __init__(self, config: Ears.Config) -> None:
        super().__init__(config)
        self.unused = nn.Parameter(torch.zeros(3))


class NotOnMeta(Ears):
    """Takes memory where only a plan is made."""

    def __init__(self, config: Ears.Config) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(1, device="cpu"))

    def forward(self, x: Tensor) -> Features:
        found = super().forward(x)
        return Features(found.values * self.scale, found.lengths)


class ValueErrors(Ears):
    """Lets a library's error through."""

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        return torch.tensor([float(x) for x in raw])


class TakesAll(Ears):
    """Says yes to everything."""

    def accepts(self, raw: Any) -> bool:
        return True


class GlobalRandom(Ears):
    """Augments with a generator that it was not given."""

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        return super().prepare(raw, rng) + random.random()


class LooseConfig(Ears):
    """Takes keys that it does not know."""

    class Config(Ears.Config, extra="ignore"):
        """Loose."""


class Silent(Ears):
    __doc__ = None


class Shorter(Double):
    """Loses the last channel."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return super().forward(x, sublayer)[..., :-1]


class Looks(Double):
    """Adds the mean over positions."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return super().forward(x, sublayer) + x.mean(1, keepdim=True)


class Claims(Double):
    """Claims to keep its sublayer's input, and does not."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return sublayer(x + 1) + self.layer(x)


class ReadsPadding(Map):
    """Adds the mean over features, the padding's among them."""

    def forward(self, features: Features) -> Features:
        found = super().forward(features)
        return Features(found.values + found.values.mean(1, keepdim=True), features.lengths)


class Forgets(Letters):
    """Begins again whatever its state."""

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        return super().iterate()


class NoJson(Letters):
    """Gives a state that JSON does not know."""

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        for example, after in super().iterate(state):
            yield example, {**after, "seen": {1, 2}}


class Shuffles(Letters):
    """Draws its order from numpy's global generator."""

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        for i, letter in enumerate(np.random.permutation(list("abcdefghij"))):
            yield Example([Text(str(letter), target=True)], str(letter)), {"next": i}


class NothingToLearn(Letters):
    """Has no target."""

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        for example, after in super().iterate(state):
            yield Example([Text("a")], example.name), after


class OneId(Spell):
    """Gives every question one id."""

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        for question in super().questions(split, shots, seed):
            question.id = "same"
            yield question


class OtherMean(Spell):
    """Says of each answer something else than its score says of all of them."""

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        return {"accuracy": 0.5 * (prediction.text == prediction.question.answer)}


class Blind(Spell):
    """Scores without looking."""

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return {"accuracy": 0.5}


class Causeless(Causal):
    """Lets a position see what follows it."""

    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Any = None) -> Tensor:
        return super().forward(embeddings + embeddings.mean(1, keepdim=True), layout, cache)


class Keeps(Causal):
    """Leaves its adapters where they are."""

    def remove_adapters(self) -> None:
        self.adapters = {}


class Repeats(Causal):
    """Expands a cache as a whole, not row by row."""

    def new_cache(self) -> magma.Cache:
        cache = super().new_cache()
        cache.expand = lambda n: cache.select(torch.arange(2).repeat(n))  # type: ignore[method-assign]
        return cache


class Thaws(Causal):
    """Freezes nothing."""

    def freeze(self) -> None:
        self.frozen = True


class PutsASpace(Causal):
    """Puts a space before every text, and does not say so."""

    marks_beginning = False  # type: ignore[assignment]

    def encode(self, text: str) -> list[int]:
        return super().encode(f" {text}")

    def encode_with_offsets(self, text: str) -> Any:
        return self.encode(text), None


class Strips(Causal):
    """Loses the space that an answer begins with."""

    def decode(self, tokens: Sequence[int]) -> str:
        return super().decode(tokens).lstrip(" ")


class Misplaces(Causal):
    """Gives offsets that are a letter late."""

    def encode_with_offsets(self, text: str) -> Any:
        ids, offsets = super().encode_with_offsets(text)
        return ids, [(start + 2, end + 2) for start, end in offsets or ()]


class Apart(Causal):
    """Tokenizes each text by itself."""

    joins = False

    def encode(self, text: str) -> list[int]:
        return super().encode(f" {text}")


class Ascii(Causal):
    """Knows English letters."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.encode("ascii").decode())


class Beyond(Causal):
    """Has a token for what it does not know, and no word embedding for it."""

    def encode(self, text: str) -> list[int]:
        return [*super().encode(text.replace("\ufffd", "")), *([self.vocab] if "\ufffd" in text else [])]


class Obeys(Causal):
    """Takes the name of a control token for the token."""

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))


class NotSavedAverage(Alarm):
    """Does not save its average."""

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"].clone()


class NotLoaded(Alarm):
    """Saves a count and does not load it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average = state["average"]


class Sets(Alarm):
    """Has a set in its state."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": {1, 2}}


class Decays(Alarm):
    """Makes the weights smaller after each step."""

    @torch.no_grad()
    def on_step_end(self, context: CallbackContext) -> None:
        super().on_step_end(context)
        next(context.model.parameters()).mul_(0.99)


class LeavesEval(Alarm):
    """Leaves the model in eval mode."""

    def on_evaluate(self, context: CallbackContext) -> None:
        context.model.eval()


class CountsCheckpoints(Alarm):
    """Counts in a hook that comes after the state was saved."""

    def on_save(self, context: CallbackContext) -> None:
        self.count += 1


class NoSkippedSteps(Alarm):
    """Expects a loss in every step."""

    def on_step_end(self, context: CallbackContext) -> None:
        self.average = 0.5 * (self.average or 0.0) + 0.5 * context.metrics["loss"]


class OtherNames(Pulled):
    """Returns a loss that it does not declare."""

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        return {**super().auxiliary_loss(context), "size": self.factor.sum()}


class NeedsTwo(Pulled):
    """Divides by a deviation, which a single item does not have."""

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        items = context.embeddings[context.input].values.mean((1, 2))
        variance = (items - items.mean()).square().sum() / (len(items) - 1)
        return {"distance": super().auxiliary_loss(context)["distance"] / variance}


class NotReduced(Pulled):
    """Returns a loss for each item."""

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        return {"distance": self.factor * context.embeddings[context.input].values.mean((1, 2))}


FAULTS: dict[type[magma.Part], str] = {
    NotSavedAverage: "state_is_saved_and_loaded",
    NotLoaded: "state_is_saved_and_loaded",
    Sets: "saving_changes_no_state",
    Decays: "hooks_change_no_model",
    LeavesEval: "hooks_change_no_model",
    CountsCheckpoints: "saving_changes_no_state",
    NoSkippedSteps: "hooks_run",
    OtherNames: "auxiliary_losses_are_scalars",
    NeedsTwo: "auxiliary_losses_are_scalars",
    NotReduced: "auxiliary_losses_are_scalars",
    WrongWidth: "features_have_their_sizes",
    WrongLength: "features_have_their_sizes",
    TooFew: "features_have_their_sizes",
    NaN: "dummy_item_is_usable",
    Random: "deterministic_in_eval",
    Leak: "frozen_for_good",
    StillTraining: "frozen_for_good",
    NotSaved: "state_is_saved",
    InPlace: "input_unchanged",
    Behind: "any_device",
    Float32: "any_dtype",
    Mixes: "rows_do_not_mix",
    Unused: "gradient_flows",
    NotOnMeta: "built_on_meta",
    ValueErrors: "bad_input_is_refused",
    TakesAll: "reads_its_inputs",
    GlobalRandom: "preparation_is_repeatable",
    LooseConfig: "config_is_strict",
    Silent: "documented",
    Shorter: "width_is_kept",
    Looks: "positions_do_not_mix",
    Claims: "calls_sublayer",
    ReadsPadding: "embeddings_have_their_sizes",
    Forgets: "resumes_from_state",
    NoJson: "examples_are_examples",
    Shuffles: "order_is_repeatable",
    NothingToLearn: "examples_are_examples",
    OneId: "questions_are_repeatable",
    OtherMean: "item_scores_are_means",
    Blind: "right_answers_score",
    Causeless: "padding_and_future_are_not_seen",
    Keeps: "adapters_removable",
    Repeats: "cache_changes_nothing",
    Thaws: "frozen_for_good",
    PutsASpace: "texts_in_a_row_are_one",
    Strips: "texts_in_a_row_are_one",
    Misplaces: "texts_in_a_row_are_one",
    Apart: "texts_in_a_row_are_one",
    Ascii: "odd_letters_are_read",
    Beyond: "odd_letters_are_read",
    Obeys: "typed_control_tokens_are_letters",
}


@pytest.mark.parametrize("part", FAULTS, ids=lambda part: part.__name__)
def test_a_fault_is_found_by_its_check(part: type[magma.Part]) -> None:
    problems = {one.check: one.problem for one in testing.run_checks(part) if one.problem}
    assert FAULTS[part] in problems, problems
    assert len(problems) <= 4, problems


def test_examine_leaves_the_global_generators_alone_and_raises_nothing() -> None:
    class Broken(Ears):
        """Cannot be made."""

        def __init__(self, config: Ears.Config) -> None:
            raise ZeroDivisionError

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = {one.check: one.problem for one in testing.run_checks(Broken)}
    assert torch.equal(torch.rand(1), expected)
    assert found["finite"] == "ZeroDivisionError: "
    assert found["documented"] == ""


def test_conformance_wants_a_part() -> None:
    with pytest.raises(PluginError, match="allowed: a subclass of Encoder"):
        testing.conformance(nn.Linear)  # type: ignore[arg-type]
