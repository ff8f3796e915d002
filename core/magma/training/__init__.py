"""Training: one optimizer step after another, with checkpoints from which a run resumes.

`train.py` trains a recipe or a stage, `trainer.py` has the loop, `checkpoints.py` saves and loads, `state.py` is what a
resume needs, `metrics.py` writes a line per step, `microbatch.py` fits batches into memory, and only `engine.py` and
`processes.py` import DeepSpeed. The learning rate of a step is in `magma/schedule.py`, which a plan needs too.
"""
