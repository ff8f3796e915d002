"""Training: one optimizer step after another, with checkpoints from which a run resumes.

`train.py` trains a recipe or a stage, `trainer.py` has the loop, `checkpoints.py` saves and loads, `stopping.py` stops
early, `metrics.py` writes a row per step, `state.py` is what a resume needs, and `microbatch.py` fits batches into
memory. Only `engine.py`, `zero.py` and `processes.py` import DeepSpeed. The learning rate of a step is in
`magma/schedule.py`, because a plan needs it too.
"""
