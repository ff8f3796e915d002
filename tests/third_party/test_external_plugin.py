"""A stranger's package, installed as strangers install, beside ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import help_limit, quickest

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
    assert {
        "kind": "encoder",
        "name": "lidar",
        "distribution": "magma-lidar",
        "version": "0.3",
        "status": "ok",
    } in parts


@pytest.mark.slow
def test_external_encoder_trains_beside_images_and_generates(stranger: dict[str, str], tmp_path: Path) -> None:
    from magma.recipe.loader import bundled

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


@pytest.mark.slow
@pytest.mark.timed
def test_help_is_quick_though_the_stranger_imports_torch(stranger: dict[str, str]) -> None:
    assert quickest(lambda: magma(stranger, "--help")) < help_limit()


FIRST_HOUR = """
name = "ranges"
lm = {{ use = "gptj", weights = "bundled:tiny" }}

[inputs.lidar]
encoder = {{ use = "lidar", width = 16 }}
prefix = {{ use = "linear", layernorm = true }}

[adapters.mlp]
use = "sequential"

[[data.train]]
use = "ranges"
input = "lidar"

[[tasks]]
use = "farthest"
input = "lidar"
limit = 10

[train]
steps = 40
batch_size = 16
lr = 3e-3
"""


def test_the_example_is_installed_and_keeps_its_promises(tmp_path: Path) -> None:
    shutil.copytree(HERE.parents[1] / "examples/magma-timeseries", tmp_path / "magma-timeseries")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(tmp_path / "magma-timeseries")], check=True)
    checked = magma({**os.environ, "PYTHONPATH": str(tmp_path / "site")}, "plugin", "check", "magma-timeseries")
    assert checked.returncode == 0, checked.stdout
    assert "encoder timeseries (magma-timeseries 0.1.0): 21 of 21 checks passed" in checked.stdout


@pytest.mark.slow
def test_tutorial_new_check_test_train(tmp_path: Path) -> None:
    """What `magma plugin new` writes works as it is: installed, checked, tested, and in a recipe."""
    site, packages = tmp_path / "site", tmp_path / "packages"
    kinds = {"lidar": "encoder", "ranges": "data", "farthest": "task", "soft": "prefix", "low_rank": "adapter"}
    kinds |= {"verdict": "head", "bytes_lm": "lm", "enough": "callback"}
    for name, kind in kinds.items():
        made = magma(dict(os.environ), "plugin", "new", name, "--kind", kind, "--out", str(packages))
        assert made.returncode == 0, made.stderr
    again = magma(dict(os.environ), "plugin", "new", "lidar", "--kind", "encoder", "--out", str(packages))
    assert again.returncode == 2
    assert "magma-lidar exists already" in again.stderr
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, *map(str, sorted(packages.iterdir()))], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "2"}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(packages)]
    own = subprocess.run(tests, env=environment, capture_output=True, text=True, check=False, cwd=packages)
    assert own.returncode == 0, own.stdout
    assert " 128 passed" in f" {own.stdout.splitlines()[-1]}"
    checked = magma(environment, "plugin", "check", "lidar")
    assert checked.returncode == 0, checked.stdout
    assert "encoder lidar (magma-lidar 0.1.0): 21 of 21 checks passed" in checked.stdout
    recipe = tmp_path / "ranges.toml"
    recipe.write_text(FIRST_HOUR.format())
    done = magma(environment, "recipe", "run", str(recipe), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_part_that_breaks_a_promise_fails_the_check(tmp_path: Path) -> None:
    """With the name of the promise, and exit status 1."""
    made = magma(dict(os.environ), "plugin", "new", "lidar", "--kind", "encoder", "--out", str(tmp_path / "packages"))
    assert made.returncode == 0, made.stderr
    code = tmp_path / "packages/magma-lidar/magma_lidar.py"
    code.write_text(
        code.read_text().replace("return magma.Features(self", "return magma.Features(0.5 + x.add_(1).sum() + self")
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(code.parent)], check=True)
    checked = magma({**os.environ, "PYTHONPATH": str(tmp_path / "site")}, "plugin", "check", "lidar")
    assert checked.returncode == 1
    assert "FAULT input_unchanged: `forward` changed its input in place" in checked.stdout
    assert "FAULT rows_do_not_mix" in checked.stdout
