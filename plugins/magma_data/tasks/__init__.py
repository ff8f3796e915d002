"""Tasks: zero-shot and few-shot evaluation on question answering, entailment and captioning data sets.

A task makes the prompts and postprocesses the answers; `metrics` computes the scores.
"""
