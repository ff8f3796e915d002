"""data/labels.csv to train.jsonl, val.jsonl and test.jsonl beside it: one JSON object a line, one line a recording."""

import csv
import json
from pathlib import Path

data = Path("data")
rows = list(csv.DictReader((data / "labels.csv").read_text().splitlines()))
splits = {"train": rows[:900], "val": rows[900:1000], "test": rows[1000:]}
for split, part in splits.items():
    with (data / f"{split}.jsonl").open("w") as file:
        for row in part:
            example = {
                "id": row["file"],
                "sensor": f"recordings/{row['file']}",
                "question": "How many pulses are there?",
                "answer": row["pulses"],
            }
            file.write(json.dumps(example) + "\n")
