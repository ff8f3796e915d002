"""Evaluations over rows of a data set's split: open questions, entailment and captions, zero-shot or few-shot.

A task asks the questions and reads the answers; how answers are scored is in `metrics`.
"""
