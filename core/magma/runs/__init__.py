"""A run from beginning to end, and the folder that it leaves.

`run.py` trains, evaluates and reports one recipe, `stages.py` trains its stages one after another, `sweep.py` runs
a family of recipes, and `folder.py` reads the folders of runs.
"""
