"""Questions of a task to answers, scores and tables.

`evaluator.py` asks a model, with the baselines; `prefix_sharing.py` reads once what several prompts begin with;
`results.py` keeps every answer in JSONL so that an evaluation resumes; `report.py` makes the tables.
"""
