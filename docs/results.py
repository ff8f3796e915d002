"""Tables and plot of results.md: `python docs/results.py [MATRIX_JSON REPORT_JSON]` makes them, a test compares tables.

The scores are those of `magma recipe matrix` with the recipes `emoji`, and of `magma eval tasks` with the text-neutral
model that `magma compose` makes of one of them, kept in benchmarks/results/. The learning curves are those of the runs
beside MATRIX_JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from pages import FOLDER, fill, table

PAGE = FOLDER / "results.md"
PLOT = PAGE.with_suffix(".png")
RESULTS = sorted((FOLDER.parent / "benchmarks/results").glob("*-emoji.json"))
SHOTS = (0, 1, 2, 4)
ROWS = {
    "emoji": "adapters (sequential, attention 4, FF 4)",
    "emoji_neutral": "the same adapters, text-neutral",
    "emoji_frozen": "Frozen (no adapters)",
    "emoji_adapters_attn4": "sequential, attention 4",
    "emoji_adapters_ff4": "sequential, FF 4",
    "emoji_adapters_ff2": "sequential, FF 2",
    "emoji_adapters_attn8_ff8": "sequential, attention 8, FF 8",
    "emoji_adapters_attn12_ff6": "sequential, attention 12, FF 6",
    "emoji_adapters_parallel_ff4": "parallel, FF 4",
    "emoji_adapters_parallel_learned_attn8_ff8": "parallel, learned scale, attention 8, FF 8",
    "emoji_encoders_lite0_trained": "encoder trained, too",
    "emoji_encoders_random": "encoder random, not trained",
    "emoji_encoders_random_trained": "encoder trained from random weights",
}
STYLE, THING, CATEGORY, TEXT = "0.emoji", "1.emoji", "2.emoji", "3.text_ability"
NAMING = {
    "known things, word F1": (STYLE, "naming_word_f1"),
    "exact": (STYLE, "naming_exact"),
    "flags": (STYLE, "flag_naming_accuracy"),
    "new things, word F1": (THING, "naming_word_f1"),
}
KNOWLEDGE = {
    "capital, one step": (STYLE, "capital_one_step_accuracy"),
    "two steps": (STYLE, "capital_two_step_accuracy"),
    "from caption": (STYLE, "capital_from_caption_accuracy"),
    "in words": (STYLE, "capital_in_words_accuracy"),
    "continent, one step": (STYLE, "continent_one_step_accuracy"),
    "two steps ": (STYLE, "continent_two_step_accuracy"),
    "from caption ": (STYLE, "continent_from_caption_accuracy"),
    "in words ": (STYLE, "continent_in_words_accuracy"),
}
ABILITY = {
    "capitals": (TEXT, "capital_accuracy"),
    "continents": (TEXT, "continent_accuracy"),
    "perplexity": (TEXT, "perplexity"),
}
Runs = list[dict[str, Any]]


def score(runs: Runs, recipe: str, task: str, name: str, way: str = "model") -> str:
    """The mean over seeds; with one seed its confidence interval, otherwise the range over seeds."""
    chosen = [run for run in runs if run["recipe"] == recipe]
    values = [run["tasks"][task][way][name] for run in chosen]
    mean = statistics.fmean(values)
    interval = chosen[0].get("intervals", {}).get(task, {}).get(way, {}).get(name)
    ends = (min(values), max(values)) if len(values) > 1 else interval
    digits = 1 if name == "perplexity" else 3
    return f"{mean:.{digits}f}" + (f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if ends else "")


def present(runs: Runs, trained: bool = False) -> list[str]:
    """The recipes with runs, in the order of the tables; only those that were trained."""
    return [one for one in ROWS if any(run["recipe"] == one and ("steps" in run or not trained) for run in runs)]


def rows_of(runs: Runs, columns: list[tuple[str, str]], controls: bool = True) -> list[tuple[str, ...]]:
    """A row for each recipe, and for the two controls of `emoji`; a column for each pair of task and score."""
    ways = [(recipe, "model", ROWS[recipe]) for recipe in present(runs)]
    if controls:
        ways += [("emoji", "shuffled", "adapters, pictures shuffled"), ("emoji", "blind", "adapters, no picture")]
    return [(name, *(score(runs, recipe, *column, way) for column in columns)) for recipe, way, name in ways]


def scores(runs: Runs, columns: dict[str, tuple[str, str]], controls: bool = True) -> str:
    """A table of named columns."""
    return table(("", *columns), *rows_of(runs, list(columns.values()), controls))


def categories(runs: Runs) -> str:
    """Accuracy of the category by number of examples in the prompt."""
    tasks = [f"{CATEGORY}@{n}" if n else CATEGORY for n in SHOTS]
    rows = rows_of(runs, [(task, "category_accuracy") for task in tasks])
    for recipe, name in (("emoji", "adapters, in words"), ("emoji_frozen", "bare language model, in words")):
        rows.append((name, *(score(runs, recipe, task, "category_in_words_accuracy") for task in tasks)))
    return table(("", *(f"{n} example{'s' * (n != 1)}" for n in SHOTS)), *rows)


def costs(runs: Runs) -> str:
    """Steps and seconds of each recipe."""
    rows = [("", "steps", "seconds", "seeds")]
    for recipe in present(runs, trained=True):
        chosen = [run for run in runs if run["recipe"] == recipe]
        seconds = statistics.fmean(run["seconds"] for run in chosen)
        rows.append((ROWS[recipe], str(chosen[0]["steps"]), f"{seconds:.0f}", str(len(chosen))))
    return table(*rows)


def plot(runs: Runs, folder: Path) -> None:
    """Training loss, averaged over 25 steps, and evaluation loss, of the first seed of each recipe."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 4))
    for i, recipe in enumerate(present(runs, trained=True)):
        lines = (folder / recipe / "seed_0/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        trained = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
        smooth = [
            (trained[j + 24][0], statistics.fmean(loss for _, loss in trained[j : j + 25]))
            for j in range(0, len(trained) - 24, 25)
        ]
        evaluated = [(row["step"], row["evaluation_loss"]) for row in rows if row.get("evaluation_loss") is not None]
        ax.plot(*zip(*smooth, strict=True), color=f"C{i}", label=ROWS[recipe])
        ax.plot(*zip(*evaluated, strict=True), "o--", color=f"C{i}", ms=4)
    ax.plot([], [], "ko--", ms=4, label="evaluation, the unseen style")
    ax.set_xlabel("step")
    ax.set_ylabel("loss per token (nats)")
    ax.set_ylim(0, 2.5)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=80)
    plt.close(figure)


def page(text: str) -> str:
    """The page with the tables of the newest results."""
    runs = json.loads(RESULTS[-1].read_text(encoding="utf-8"))["runs"]
    text = fill(text, "results.py", "naming", scores(runs, NAMING))
    text = fill(text, "results.py", "knowledge", scores(runs, KNOWLEDGE))
    text = fill(text, "results.py", "categories", categories(runs))
    text = fill(text, "results.py", "ability", scores(runs, ABILITY, controls=False))
    return fill(text, "results.py", "costs", costs(runs))


def keep(matrix: Path, neutral: Path) -> None:
    """Keep the scores of the runs, and those of the text-neutral model."""
    runs = json.loads(matrix.read_text(encoding="utf-8"))["runs"]
    report = json.loads(neutral.read_text(encoding="utf-8"))
    kept = {key: report[key] for key in ("seed", "tasks", "intervals")}
    RESULTS[-1].write_text(json.dumps({"runs": [*runs, {"recipe": "emoji_neutral", **kept}]}, indent=1) + "\n")
    plot(runs, matrix.parent)


if __name__ == "__main__":
    if sys.argv[1:]:
        keep(*map(Path, sys.argv[1:]))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
