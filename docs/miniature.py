"""Table and plot of paper/miniature.md: `python docs/miniature.py [MATRIX_JSON]` makes them, a test compares the table.

The scores are those of `magma recipe matrix`, kept in benchmarks/results/.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from typing import Any

from pages import FOLDER, fill, table

PAGE = FOLDER / "paper/miniature.md"
PLOT = PAGE.with_suffix(".png")
RESULTS = sorted((FOLDER.parent / "benchmarks/results").glob("*-mini.json"))
SHOTS = (0, 1, 2, 4)
ROWS = {
    "mini_adapters_none": "no adapters",
    "mini_adapters_ff2": "sequential, FF 2",
    "mini_adapters_ff4": "sequential, FF 4",
    "mini_adapters_attn8_ff8": "sequential, attention 8, FF 8",
    "mini_adapters_attn12_ff6": "sequential, attention 12, FF 6",
    "mini_adapters_parallel_ff4": "parallel, FF 4",
    "mini_adapters_parallel_learned_attn8_ff8": "parallel, learned scale, attention 8, FF 8",
    "mini_encoders_nfresnet": "NF-ResNet",
    "mini_encoders_vit": "CLIP ViT",
    "mini_encoders_rn_small": "CLIP ResNet, width 8",
    "mini_encoders_rn_large": "CLIP ResNet, width 16",
    "mini_frozen": "Frozen (NF-ResNet, no adapters)",
}
GROUPS = {
    "caption": "caption",
    "name": "which number?",
    "parity_one_step": "odd or even?",
    "next_one_step": "which comes next?",
    "larger": "which is larger?",
}


def scores(runs: list[dict[str, Any]], recipe: str, group: str, shots: int, way: str = "model") -> list[float]:
    """In percent, one for each seed."""
    key = f"0.digits@{shots}" if shots else "0.digits"
    return [100 * run["tasks"][key][way][f"{group}_accuracy"] for run in runs if run["recipe"] == recipe]


def cell(values: list[float]) -> str:
    """Mean, and half the distance from the lowest to the highest."""
    return f"{statistics.fmean(values):.0f} ± {(max(values) - min(values)) / 2:.0f}"


def mean_of(runs: list[dict[str, Any]], recipe: str, groups: list[str], shots: tuple[int, ...]) -> list[float]:
    """For each seed, the mean over groups and numbers of shots."""
    columns = [scores(runs, recipe, group, n) for group in groups for n in shots]
    return [statistics.fmean(column) for column in zip(*columns, strict=True)]


def results(runs: list[dict[str, Any]]) -> str:
    """A row a recipe: captions, then each question with 0 and 4 shots, then means over all numbers of shots."""
    head = ["row", "caption"]
    head += [f"{asked} {n}-shot" for group, asked in GROUPS.items() if group != "caption" for n in (0, 4)]
    head += ["all questions, 0-shot", "1, 2, 4-shot"]
    rows = [tuple(head)]
    asked = [group for group in GROUPS if group != "caption"]
    for recipe, name in ROWS.items():
        found = [cell(scores(runs, recipe, "caption", 0))]
        found += [cell(scores(runs, recipe, group, n)) for group in asked for n in (0, 4)]
        found += [cell(mean_of(runs, recipe, asked, (0,))), cell(mean_of(runs, recipe, asked, (1, 2, 4)))]
        rows.append((name, *found))
    for way in ("shuffled", "blind"):
        means = [statistics.fmean(v for r in ROWS for v in scores(runs, r, "caption", 0, way))]
        means += [
            statistics.fmean(v for r in ROWS for v in scores(runs, r, group, n, way)) for group in asked for n in (0, 4)
        ]
        name = f"images {'shuffled' if way == 'shuffled' else 'removed'}, mean of all rows"
        rows.append((name, *(f"{x:.0f}" for x in means), "", ""))
    return table(*rows)


def plot(runs: list[dict[str, Any]]) -> None:
    """Accuracy against shots, a panel a question, a line a row; bands from the lowest seed to the highest."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(GROUPS), figsize=(16, 7.5), sharex=True, sharey="col")
    for panels, part, title in zip(
        axes, ("adapters", "encoders"), ("adapters", "encoders (FF 4) and Frozen"), strict=True
    ):
        chosen = [r for r in ROWS if f"_{part}_" in r or (part == "encoders" and r == "mini_frozen")]
        for ax, (group, asked) in zip(panels, GROUPS.items(), strict=True):
            for i, recipe in enumerate(chosen):
                seeds = [scores(runs, recipe, group, n) for n in SHOTS]
                ax.plot(range(4), [statistics.fmean(v) for v in seeds], "o-", label=ROWS[recipe], color=f"C{i}", ms=4)
                ax.fill_between(range(4), [min(v) for v in seeds], [max(v) for v in seeds], color=f"C{i}", alpha=0.1)
            blind = [statistics.fmean(v for r in chosen for v in scores(runs, r, group, n, "blind")) for n in SHOTS]
            ax.plot(range(4), blind, "k:", label="without images")
            ax.set_title(asked, fontsize=10)
            ax.grid(alpha=0.3)
        panels[0].set_ylabel(f"{title}\naccuracy (%)")
        panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    for ax in axes[-1]:
        ax.set_xticks(range(4), [str(n) for n in SHOTS])
        ax.set_xlabel("in-context examples")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=80)
    plt.close(figure)


def page(text: str) -> str:
    """The page with the table of the newest results."""
    return fill(text, "miniature.py", "results", results(json.loads(RESULTS[-1].read_text())["runs"]))


if __name__ == "__main__":
    if sys.argv[1:]:
        shutil.copyfile(sys.argv[1], RESULTS[-1])
    plot(json.loads(RESULTS[-1].read_text())["runs"])
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
