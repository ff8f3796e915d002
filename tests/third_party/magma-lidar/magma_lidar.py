"""Laser range scans as an input: eight distances in metres, from left to right."""

import random
from pathlib import Path

import torch

import magma


class Lidar(magma.Encoder):
    """Eight distances to two features."""

    name = "lidar"
    modality = "lidar"

    class Config(magma.PartConfig):
        width: int = 32

    def __init__(self, config):
        super().__init__(config)
        self.dim, self.length = config.width, 2
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 2 * config.width)
        )

    def accepts(self, raw):
        return (isinstance(raw, list) and len(raw) == 8) or (isinstance(raw, Path) and raw.suffix == ".scan")

    def prepare(self, raw, rng=None):
        try:
            return torch.tensor([float(x) for x in (raw.read_text().split() if isinstance(raw, Path) else raw)]).view(8)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise magma.InputError(f"given {raw!r}; allowed: eight distances, or a .scan file of them") from error

    def dummy_item(self):
        return torch.zeros(8)

    def forward(self, x):
        return magma.Features(self.layers(x).view(-1, 2, self.dim))


class Scans(magma.DataSource):
    """Obstacles that are near or far, on the left or on the right."""

    name = "scans"

    def __init__(self, config, seed):
        super().__init__(config, seed)
        self.seed = seed

    def iterate(self, state=None):
        for i in range((state or {"next": 0})["next"], (state or {"next": 0})["next"] + 100):
            draw = random.Random(f"{self.seed} {i}")
            side, where = draw.choice(["left", "right"]), draw.choice(["near", "far"])
            scan = [9.0 + draw.random() for _ in range(8)]
            scan[draw.randrange(4) + 4 * (side == "right")] = draw.random() + (1 if where == "near" else 5)
            text = magma.Text(f"The obstacle is {where}, {side}.", target=True)
            yield magma.Example([magma.Media("lidar", scan), text], f"scan {i}"), {"next": i + 1}


@magma.hookimpl
def magma_parts():
    return [Lidar, Scans]
