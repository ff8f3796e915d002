"""Clips of a shape that moves left, right, up or down: `make.py` writes them, `task.py` asks about them."""
