"""In the place of your own data: 1,200 recordings with zero to nine pulses each, and a table that says how many."""

import csv
from pathlib import Path

import numpy as np

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
draw = np.random.default_rng(0)
folder = Path("data/recordings")
folder.mkdir(parents=True, exist_ok=True)
with Path("data/labels.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["file", "pulses"])
    for number in range(1200):
        pulses = int(draw.integers(10))
        values = draw.normal(0, 0.1, 128)
        for place in draw.permutation(12)[:pulses]:
            start = 10 * place + draw.integers(4)
            values[start : start + 6] += draw.uniform(0.7, 1.3)
        np.savetxt(folder / f"{number:04}.csv", values, fmt="%.3f")
        table.writerow([f"{number:04}.csv", WORDS[pulses]])
