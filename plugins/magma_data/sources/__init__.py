"""Data sources: what `[[data.train]]` of a recipe names.

A source turns the rows that `formats` reads from disk into training examples.
"""
