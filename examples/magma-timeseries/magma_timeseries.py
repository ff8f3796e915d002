"""Time series in patches (Nie et al. 2023). Axes: b batch, n patches, p values of a patch, e width."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import magma


class TimeSeries(magma.Encoder):
    """Values at even times, resampled to n patches and brought to mean 0 and variance 1; one feature a patch."""

    name = modality = "timeseries"

    class Config(magma.PartConfig):
        """n, p and e."""

        patches: int = 8
        patch: int = 16
        width: int = 64

    def __init__(self, config):
        super().__init__(config)
        self.dim, self.length = config.width, config.patches
        self.layers = nn.Sequential(nn.Linear(config.patch, 4 * self.dim), nn.GELU(), nn.Linear(4 * self.dim, self.dim))

    @classmethod
    def check_inputs(cls, folder):
        (folder / "a.csv").write_text("1\n2\n4\n8\n")
        bad = (folder / "none.csv", [], ["a"], [1.0, float("nan")], np.zeros((2, 2)))
        return magma.CheckInputs({"width": 8}, (folder / "a.csv", np.arange(100.0), [3, 1, 2]), bad)

    def accepts(self, raw):
        return isinstance(raw, list | np.ndarray) or (isinstance(raw, Path) and raw.suffix == ".csv")

    def prepare(self, raw, rng=None):
        try:
            values = np.loadtxt(raw, ndmin=1) if isinstance(raw, Path) else np.asarray(raw, np.float64)
            if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
                raise ValueError(f"values {list(values.shape)}")
        except (OSError, TypeError, ValueError) as error:
            raise magma.InputError(f"given {raw!r:.60}; allowed: two finite numbers or more: {error}") from error
        steps = np.linspace(0, len(values) - 1, self.config.patches * self.config.patch)
        values = np.interp(steps, np.arange(len(values)), (values - values.mean()) / (values.std() + 1e-6))
        return torch.from_numpy(values).float().view(-1, self.config.patch)

    def dummy_item(self):
        return torch.zeros(self.length, self.config.patch)

    def forward(self, x):
        return magma.Features(self.layers(x))  # [b, n, p] to [b, n, e]


@magma.hookimpl
def magma_parts():
    return [TimeSeries]
