"""Data sources, for `[[data.train]]` and `[[data.evaluation]]` of a recipe.

A data source converts the rows that `formats` reads to training examples.
"""
