"""From examples to the batches that a model takes.

`sequence.py` and `collator.py` turn texts and media into token rows and padded or packed batches, `tokenization.py`
decides which tokens a text has, `mixture.py` draws from several sources, and `loader.py` prepares the share of one
process in worker processes. Nothing here knows a recipe.
"""
