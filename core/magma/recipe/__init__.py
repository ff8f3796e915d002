"""Recipes: from TOML to a checked description of a model and its training, and to the model.

`recipe.py` has the whole recipe and `schema.py` its tables, `loader.py` reads files and `overrides.py` changes single
values, `parts.py` checks the tables that name a part, `stages.py` merges a stage's tables into the recipe's,
`keys.py` and `json_schema.py` describe the keys, and `assemble.py` builds the model.
"""
