"""Faster computations with the same results, for the modules of any language model of transformers.

No family is named here. Each module of this package looks at the structure or the behaviour of a module, shows with a
probe that its own computation gives the same, and leaves the module as it is otherwise.
"""
