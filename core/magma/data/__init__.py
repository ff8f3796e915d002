"""From examples to the batches that a model takes.

`collator.py` encodes texts and media and makes padded or packed batches, whose classes are in `sequence.py`;
`tokenization.py` decides which tokens a text has, `mixture.py` draws from several sources, and `loader.py` prepares the
batches of one process in worker processes. Nothing here depends on a recipe.
"""
