"""A recipe: TOML in, a checked and frozen description of a model and its training out, and the model that it means.

`schema.py` has the tables, `loader.py` reads files and overrides, `stages.py` lays the tables of a stage over those
of the recipe, and `assemble.py` builds the model.
"""
