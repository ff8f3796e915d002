"""Clips of a shape that moves left, right, up or down: what writes them, a data source and a task."""
