"""A stranger's package, installed as strangers install, beside ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RECIPE = """
extends = "{quickstart}"
name = "see_and_range"

[inputs.lidar]
encoder = {{ use = "lidar", width = 16 }}
prefix = {{ use = "linear", layernorm = true }}

[[data.train]]
use = "digits"

[[data.train]]
use = "scans"
weight = 0.5

[data]
evaluation = []

[train]
steps = 40
batch_size = 16
evaluate_every = 0
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which pip has installed the package into a folder of its own."""
    site, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "magma-lidar"
    shutil.copytree(HERE / "magma-lidar", source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "2"}


def magma(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "magma.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_it_is_listed_with_its_distribution(stranger: dict[str, str]) -> None:
    parts = json.loads(magma(stranger, "plugin", "list", "--json").stdout)["parts"]
    assert {"kind": "encoder", "name": "lidar", "distribution": "magma-lidar", "version": "0.3"} in parts


def test_it_trains_beside_images_and_generates(stranger: dict[str, str], tmp_path: Path) -> None:
    from magma.recipe import bundled

    recipe = tmp_path / "see_and_range.toml"
    recipe.write_text(
        RECIPE.format(quickstart=bundled()["quickstart"]).replace("[data]\nevaluation = []\n", "")
        + '\n[[data.evaluation]]\nuse = "scans"\n'
    )
    out = tmp_path / "run"
    done = magma(stranger, "recipe", "run", str(recipe), "--out", str(out), "--set", "tasks.0.limit=5")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    report = json.loads((out / "report.json").read_text())
    assert report["parts"]["inputs.lidar.encoder"]["from"] == "magma-lidar 0.3"
    assert report["parts"]["inputs.lidar.encoder"]["trained"] > 0
    scan = tmp_path / "a.scan"
    scan.write_text("9 9 1 9 9 9 9 9")
    said = magma(stranger, "generate", str(out), "--lidar", str(scan), "--text", "The obstacle")
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    scan.write_text("9 9 1")
    refused = magma(stranger, "generate", str(out), "--lidar", str(scan), "--text", "The obstacle")
    assert refused.returncode == 2
    assert "allowed: eight distances" in refused.stderr


def test_help_is_quick_though_the_stranger_imports_torch(stranger: dict[str, str]) -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        assert magma(stranger, "--help").returncode == 0
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5, times
