"""Training: one optimizer step after another, with checkpoints from which a run resumes.

`trainer.py` has the loop, `engine.py` is the only file that imports DeepSpeed, `schedule.py` gives the learning rate
of each step, `state.py` is what a resume needs, and `microbatch.py` fits batches into memory.
"""
