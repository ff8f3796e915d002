"""A run from start to end, and its folder.

`run.py` trains, evaluates and reports one recipe, `stages.py` trains its stages one after another, `sweep.py` runs
several recipes, `folder.py` reads the folders of runs, and `features.py` writes features and embeddings of media.
"""
