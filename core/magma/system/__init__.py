"""The machine: processes, signals, ranks, devices, memory and home folders. Nothing here depends on a model."""
