"""An encoder of sensor recordings. Axes: b batch, s samples, c channels, n features, e width."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import nn

import magma


class Sensor(magma.Encoder):
    """A recording of `samples` numbers to `features` features of width `width`: convolutions, then a mean over time."""

    name = "sensor"
    modality = "sensor"

    class Config(magma.PartConfig):
        """The sizes of the network."""

        samples: int = 128
        features: int = 2
        width: int = 64

    def __init__(self, config):
        super().__init__(config)
        self.dim, self.length = config.width, config.features  # e and n
        self.convolutions = nn.Sequential(
            *(nn.Conv1d(1, 32, 9, padding=4), nn.GELU()),
            *(nn.Conv1d(32, 64, 9, padding=4), nn.GELU()),
        )
        self.project = nn.Sequential(
            *(nn.Linear(64, 128), nn.GELU()),
            nn.Linear(128, config.features * config.width),
        )

    @classmethod
    def check_inputs(cls, folder):
        """What `magma plugin check` uses: inputs that are read, and inputs that are refused."""
        np.savetxt(folder / "one.csv", np.arange(16.0))
        good = (folder / "one.csv", [0.5] * 16)
        bad = (folder / "missing.csv", [1.0, 2.0], ["a"] * 16, [float("nan")] * 16)
        return magma.CheckInputs({"samples": 16, "width": 8}, good, bad)

    def accepts(self, raw):
        """A list of numbers, or the path of a .csv file."""
        return isinstance(raw, list) or (isinstance(raw, Path) and raw.suffix == ".csv")

    def prepare(self, raw, rng=None):
        """A path, the bytes of a file, or a list, to a tensor [s]."""
        try:
            if isinstance(raw, bytes):  # from tar and parquet files
                raw = io.BytesIO(raw)
            values = np.asarray(raw, float) if isinstance(raw, list) else np.loadtxt(raw)
        except (OSError, TypeError, ValueError) as error:
            raise magma.InputError(f"given {raw!r:.60}; allowed: numbers: {error}") from error
        if values.shape != (self.config.samples,) or not np.isfinite(values).all():
            raise magma.InputError(f"given {raw!r:.60}; allowed: {self.config.samples} finite numbers")
        return torch.from_numpy(values).float()

    def dummy_item(self):
        """Zeros [s]: takes the place of a recording in a batch that has none."""
        return torch.zeros(self.config.samples)

    def forward(self, x):
        """[b, s] to [b, n, e]."""
        pooled = self.convolutions(x[:, None]).mean(-1)  # [b, c]
        return magma.Features(self.project(pooled).view(len(x), self.length, self.dim))


@magma.hookimpl
def magma_parts():
    """The parts of this package."""
    return [Sensor]
