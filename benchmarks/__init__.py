"""How fast, against what users would run otherwise: `python -m benchmarks [--only NAME ...] [--json FILE]`."""
