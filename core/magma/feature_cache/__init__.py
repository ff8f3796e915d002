"""Features of frozen encoders on disk, so that each medium is prepared and encoded once.

`store.py` keeps entries in a folder of limited size, `entry.py` writes and checks one of them, `identity.py` makes the
part of the key that describes the encoder, and `cache.py` looks up and fills the batches of one input. Losses are those
of a model without a cache, bit by bit.
"""
