"""Scores of answers and captions, as the official evaluations of the data sets compute them."""
