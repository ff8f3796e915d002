"""The files of `magma eval`: every answer in JSONL, and scores in JSON.

Each task has a folder with `0_shot.jsonl`, `0_shot.shuffled.jsonl`, `0_shot.blind.jsonl` and so on, with a line for
each answer in the order of the questions, and `scores.json`. A file that is being written ends with `.partial`; an
interrupted evaluation resumes from it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, bullet_list
from ..interfaces import Task
from ..io import atomic_write
from ..manifest import combined_sha256, read_manifest
from ..model import Magma
from ..recipe.notation import parse_json
from ..recipe.schema import MAX_UNREADABLE
from ..values import Media, Prediction, Question, Text, Tokens
from .evaluator import BASELINES, Baseline, TaskRunner
from .intervals import Interval, score_intervals

IDENTITY, SCORES = "about.json", "scores.json"
EVALUATIONS = "eval"
WINDOW = 4096
"""Questions that are held in memory, and whose media the control run shuffles among each other."""


@dataclass(frozen=True)
class ScoreDetails:
    """What is known about scores, in `scores.json` and in the report of a run. Keys are numbers of shots."""

    measures: dict[str, dict[str, str]]
    """How a score was measured, by score."""
    intervals: dict[str, dict[str, dict[str, Interval]]]
    """Confidence intervals of 95 percent, by run ("model", "shuffled", "blind") and score."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> ScoreDetails:
        """Those of a JSON object, which may lack some."""
        return cls(found.get("measures", {}), found.get("intervals", {}))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; without intervals if there are none."""
        return {"measures": self.measures, **({"intervals": self.intervals} if self.intervals else {})}


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one model on one task, with its folder."""

    model: Magma
    task: Task
    folder: Path
    evaluation_id: Mapping[str, Any]
    """JSON that identifies it: an evaluation resumes only in a folder with the same one."""
    seed: int = 0
    batch_size: int = 64
    split: str = "test"
    artifacts: Path | None = None
    """The folder of the files that the task draws; by default the folder of the evaluation."""
    max_unreadable: float = MAX_UNREADABLE
    """The largest fraction of questions that may be unreadable."""
    fewer_shots: bool = True
    """Ask a question that is too long with fewer in-context examples; otherwise it is an error."""
    say: Callable[[str], None] = lambda _: None
    """Receives messages for the user, such as which questions cannot be read."""

    def run(
        self,
        shots: Sequence[int],
        baselines: Sequence[Baseline] = BASELINES,
        progress: Callable[[str, int], None] = lambda *_: None,
        *,
        replace: bool = False,
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Answer the questions that have no answer yet, and write the scores.

        Args:
            shots: Numbers of in-context examples.
            baselines: The runs; "" is the model itself.
            progress: Called with the name of the run and the number of its answers so far.
            replace: Whether an evaluation with another identity in the folder is replaced.

        Returns:
            Scores by number of shots and run; the model itself is called "model".

        Raises:
            InputError: If the folder holds another evaluation, or too many questions cannot be read.
        """
        known, details = self._known(replace)
        fewer: dict[str, dict[str, int]] = {}
        runner = TaskRunner(self.model, self.task, self.batch_size, self.fewer_shots)
        for count, baseline in itertools.product(shots, baselines):
            rows = self._answers(runner, count, baseline, progress)
            predictions = [prediction_from_row(row, baseline) for row in rows]
            known.setdefault(str(count), {})[baseline or "model"] = self.task.score(predictions)
            if not baseline:
                details.measures[str(count)] = self.task.measures(predictions)
            if found := score_intervals(self.task, predictions):
                details.intervals.setdefault(str(count), {})[baseline or "model"] = found
            if not count and not baseline:
                self.task.artifacts(self.artifacts or self.folder, predictions)
            written = {
                **self.evaluation_id,
                "primary": primary_score(self.task, known[str(count)][baseline or "model"]),
                "unit": self.task.score_unit,
                "questions": len(rows),
                "scores": known,
                **details.to_dict(),
            }
            if short := sum("dropped_shots" in row for row in rows):
                fewer.setdefault(str(count), {})[baseline or "model"] = short
            if fewer:
                written["asked_with_fewer_shots"] = fewer
            atomic_write(self.folder / SCORES, json.dumps(written, indent=1) + "\n")
        return known

    def _known(self, replace: bool) -> tuple[dict[str, dict[str, dict[str, float]]], ScoreDetails]:
        """Earlier scores in the folder, and what is known about them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file, plain = self.folder / IDENTITY, json.loads(json.dumps(self.evaluation_id))
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else plain
        if "config" in before:  # a field that a later version added had its default value
            before["config"] = {**_defaults(self.task), **self.task.config.rename_keys(before["config"])}
        if other := [key for key in {**before, **plain} if before.get(key) != plain.get(key)]:
            if not replace:
                raise InputError(
                    f"{self.folder} holds another evaluation ({', '.join(other)} differ): choose another --out"
                )
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        atomic_write(file, json.dumps(plain, indent=1) + "\n")
        scores = self.folder / SCORES
        found: dict[str, Any] = json.loads(scores.read_text(encoding="utf-8")) if scores.is_file() else {}
        return found.get("scores", {}), ScoreDetails.of(found)

    def _answers(
        self, runner: TaskRunner, shots: int, baseline: Baseline, progress: Callable[[str, int], None]
    ) -> list[dict[str, Any]]:
        """The rows of one file. It is completed if necessary; questions that could not be read are asked again."""
        name = f"{shots}_shot{f'.{baseline}' if baseline else ''}"
        what = f"{self.task.name}, {shots} {'shot' if shots == 1 else 'shots'}{f', {baseline}' if baseline else ''}"
        path = self.folder / f"{name}.jsonl"
        partial = path.with_name(f"{path.name}.partial")
        written = partial if partial.is_file() else path
        known = list(_lines(written)) if written.is_file() else []
        rows = {row["number"]: row for row in known if "problem" not in row}
        rows |= self._same_answers(shots) if baseline else {}
        if written == path and written.is_file() and len(rows) == len(known):
            return known
        _rewrite(partial, rows.values())  # without a last line that was cut off
        done = len(rows)
        questions = self.task.questions(self.split, shots, self.seed)
        batches = runner.run(
            questions,
            baseline,
            self.seed,
            window=WINDOW,
            answered=frozenset(rows),
            max_unreadable=self.max_unreadable,
        )
        with partial.open("a", encoding="utf-8") as file:
            for found in batches:
                new = [self._row(number, prediction) for number, prediction in found.items()]
                rows |= {row["number"]: row for row in new}
                file.writelines(_line(row) for row in new)
                file.flush()
                done += len(new)
                progress(what, done)
        ordered = [rows[number] for number in sorted(rows)]
        _rewrite(path, ordered)
        partial.unlink()
        self._report(runner, path, ordered)
        return ordered

    def _same_answers(self, shots: int) -> dict[int, dict[str, Any]]:
        """The rows of the model itself about questions without media, which the controls share."""
        path = self.folder / f"{shots}_shot.jsonl"
        rows = _lines(path) if path.is_file() else ()
        return {row["number"]: row for row in rows if not row.get("uses_media", True)}

    def _report(self, runner: TaskRunner, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Report what could not be read."""
        if runner.not_shown:
            self.say(f"in-context examples that cannot be read are replaced by others:{bullet_list(runner.not_shown)}")
            runner.not_shown.clear()
        if fewer := sum("dropped_shots" in row for row in rows):
            self.say(
                f"{fewer} of {len(rows)} questions do not fit with all in-context examples and are asked with fewer; "
                f"{path} has the number of examples that were left out, in dropped_shots"
            )
        if problems := _problems(rows):
            self.say(
                f"{len(problems)} of {len(rows)} questions cannot be read and count as wrong; {path} has all of them:"
                f"{bullet_list(problems)}"
            )

    def _row(self, number: int, prediction: Prediction) -> dict[str, Any]:
        question = prediction.question
        judged = self.task.score_one(prediction)
        row = {
            "number": number,
            "id": question.id,
            "group": question.group,
            "prompt": _prompt_text(question.segments),
            "shots": list(question.shots),
            "output": prediction.output,
            "prediction": prediction.text,
            "answer": question.answer,
            "answers": list(question.answers),
            "extra": question.extra,
        }
        if prediction.dropped_shots:
            row["dropped_shots"] = prediction.dropped_shots
        if prediction.problem:
            row["problem"] = prediction.problem
        if not prediction.uses_media and not prediction.baseline:
            row["uses_media"] = False
        if prediction.log_likelihood is not None:
            row |= {"log_likelihood": prediction.log_likelihood, "tokens": prediction.num_tokens}
        return row if judged is None else {**row, "compared": judged[0], "score": judged[1]}


def _problems(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why questions could not be read, in their order."""
    return [row["problem"] for row in sorted(rows, key=lambda row: row["number"]) if "problem" in row]


def _defaults(task: Task) -> dict[str, Any]:
    """The defaults of a task's config, as JSON."""
    fields = type(task.config).model_fields.items()
    optional = {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    plain: dict[str, Any] = type(task.config).model_construct(**optional).model_dump(mode="json", include=set(optional))
    return plain


def load_details(folder: Path) -> ScoreDetails:
    """What is known about the scores in the folder of an evaluation."""
    return ScoreDetails.of(json.loads((folder / SCORES).read_text(encoding="utf-8")))


def primary_score(task: Task, scores: Mapping[str, float]) -> str:
    """The name of the main score; the first one if the main score was not measured, as for some groups only."""
    return task.primary_metric if task.primary_metric in scores else next(iter(scores), task.primary_metric)


def evaluation_id(task: Task, seed: int, folder: Path) -> dict[str, Any]:
    """The identity of an evaluation of a checkpoint; JSON."""
    return {
        "task": task.name,
        "config": task.config.model_dump(mode="json"),
        "seed": seed,
        "checkpoint": combined_sha256(read_manifest(folder).trained),
    }


def _prompt_text(segments: Iterable[Any]) -> str:
    """A prompt as readable text."""
    return "".join(
        f"[{s.name}]" if isinstance(s, Media) else s.text if isinstance(s, Text) else f"[{len(s.ids)} tokens]"
        for s in segments
        if isinstance(s, Media | Text | Tokens)
    )


def prediction_from_row(row: Mapping[str, Any], baseline: str = "") -> Prediction:
    """A line of a file of predictions (`prediction`, and `answers` or `answer`) as a task scores it."""
    answers = row.get("answers") or []
    question = Question(
        _text(row, "id"),
        [],
        str(row.get("answer") or statistics.mode(answers) if answers or row.get("answer") else ""),
        _text(row, "group"),
        dict(row.get("extra") or {}),
        tuple(answers),
        tuple(row.get("shots") or ()),
    )
    output = _text(row, "output", row["prediction"])
    prediction = Prediction(question, row["prediction"], baseline, output, _text(row, "problem"))
    prediction.log_likelihood, prediction.num_tokens = row.get("log_likelihood"), row.get("tokens") or 0
    prediction.uses_media = row.get("uses_media") is not False
    return prediction


def _text(row: Mapping[str, Any], key: str, default: str = "") -> str:
    """A field as text; null counts as a missing field."""
    value = row.get(key)
    return default if value is None else str(value)


def score_file(task: Task, path: Path) -> dict[str, Any]:
    """Score a file of predictions.

    Returns:
        The scores; `measures`, how they were measured; and `per_item`, the score of each line, if the task scores
        single answers.

    Raises:
        InputError: If a line is not a prediction.
    """
    predictions = []
    for number, row in enumerate(_lines(path, strict=True), 1):
        answers = [] if row.get("answers") is None else row["answers"]
        if not isinstance(row.get("prediction"), str):
            raise InputError(f"{path} line {number}: prediction: given {row.get('prediction')!r}; allowed: text")
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise InputError(f"{path} line {number}: answers: given {answers!r}; allowed: a list of texts")
        if not answers and not isinstance(row.get("answer"), str):
            raise InputError(f"{path} line {number}: neither `answers` nor `answer`; allowed: one of them")
        predictions.append(prediction_from_row(row))
    if not predictions:
        raise InputError(f"{path} has no predictions; allowed: JSONL, a line a prediction")
    judged = [task.score_one(prediction) for prediction in predictions]
    found: dict[str, Any] = dict(task.score(predictions))
    if measures := task.measures(predictions):
        found["measures"] = measures
    if all(one is not None for one in judged):
        found["per_item"] = [one[1] for one in judged if one is not None]
    return found


def _lines(path: Path, strict: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of JSONL. Without `strict` the file ends at a line that was cut off."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            if not strict:
                return
            raise InputError(f"{path} line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number}: given a {type(row).__name__}; allowed: an object")
        yield row


def _rewrite(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    atomic_write(path, "".join(map(_line, rows)))


def _line(row: Mapping[str, Any]) -> str:
    """A line of JSON with readable characters; half of a surrogate pair, which UTF-8 cannot encode, is escaped."""
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"
