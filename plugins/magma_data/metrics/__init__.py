"""Metrics of answers and captions, as in the official evaluations of the data sets."""
