"""A recipe: TOML in, a checked and frozen description of a model and its training out, and the model that it means.

`recipe.py` has the whole recipe and `schema.py` its tables, `loader.py` reads files and `overrides.py` changes single
values, `parts.py` checks the tables that name a part, `stages.py` lays the tables of a stage over those of the recipe,
and `assemble.py` builds the model.
"""
