"""From the questions of a task to answers, scores and tables.

`evaluator.py` runs a model on a task, with the control runs; `prefix_sharing.py` caches prefixes that several prompts
share; `results.py` writes every answer to JSONL, so that an evaluation can resume; `report.py` makes the tables.
"""
