"""The program: what it prints, and that a user's mistake is a message and exit status 2."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from program import help_limit, magma, quickest, start

from magma.system.home_paths import expand_home

QUICK = ["--set", "train.samples=96", "--set", "tasks.0.limit=6", "--set", "train.evaluate_samples=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A short quickstart, in a folder whose name rich would read as markup."""
    out = tmp_path_factory.mktemp("runs") / "short[seven]"
    done = magma("recipe", "run", "quickstart", "--out", out, *QUICK)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.mark.slow
@pytest.mark.timed
def test_help_answers_in_half_a_second() -> None:
    """Timed where nothing runs beside it."""
    assert "Any modality into a frozen language model" in start("--help").stdout
    assert quickest(lambda: start("--help")) < help_limit()


def test_a_run_leaves_all_that_is_promised(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = run
    assert {p.name for p in out.iterdir()} == {
        *("recipe.toml", "metrics.jsonl", "loss.png", "samples.png", "report.json", "checkpoints", "eval")
    }
    for name, size in (("loss.png", (700, 400)), ("samples.png", (960, 800))):
        with Image.open(out / name) as image:
            assert image.size == size
            assert len(np.unique(np.asarray(image.convert("L")))) > 50
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 3
    assert report["frozen_unchanged"] is True
    assert report["parts"]["lm"]["trained"] == 0
    assert 0 <= report["caption_accuracy"] <= 1
    assert {"shuffled_accuracy", "blind_accuracy", "seconds", "finished", "processes"} <= report.keys()
    assert set(report["tasks"]["0.digits"]) == {"model", "shuffled", "blind"}
    assert "inputs.image.encoder" in done.stderr
    assert f"45 frozen tensors are unchanged: sha256 {report['frozen_fingerprint']}" in done.stderr
    assert f"all files are in {out}\n" in done.stderr


def test_verify_says_what_is_as_it_was_written(
    run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Exit status 0: all of it; 2: refused, as loading refuses it."""
    (written,) = (run[0] / "checkpoints").iterdir()
    done = magma("verify", run[0])
    assert done.returncode == 0, done.stderr
    table = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:-1]}
    files = {"manifest.json", "recipe.toml", "trained.safetensors"}
    assert table == dict.fromkeys([*files, "lm", "state/"], "ok")
    assert "45 frozen tensors: fingerprints" in done.stdout
    assert done.stdout.splitlines()[-1] == f"{written} is complete and unmodified"

    folder = shutil.copytree(written, tmp_path / "edited")
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("downsample = 8", "downsample = 4", 1))
    done = magma("verify", folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"magma: {folder}: recipe.toml was modified after saving. Restore the"
    )


def test_a_second_run_does_not_overwrite_the_first(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = magma("recipe", "run", "quickstart", "--out", run[0], *QUICK)
    assert done.returncode == 2
    assert "holds a run already: choose another folder with --out, or resume with --resume" in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, processes: int) -> None:
    (tmp_path / "file").touch()
    done = magma("recipe", "run", "quickstart", "--out", "file/run", "--nproc", processes, *QUICK, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "magma: file/run cannot be read or written: Not a directory"
    (tmp_path / "runs").touch()
    done = magma("recipe", "run", "quickstart", "--nproc", processes, *QUICK, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("magma: runs")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "runs"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "gone", "out/x"), "out/x cannot be read or written: gone"),
        (FileNotFoundError(errno.ENOENT, "gone", "out"), "out cannot be read or written: gone"),  # above it
        (FileExistsError(errno.EEXIST, "there", "out/.x.partial"), "out/x cannot be read or written: there"),
        (NotADirectoryError(errno.ENOTDIR, "a file", b"out/x/y"), "out/x/y cannot be read or written: a file"),
        (PermissionError(errno.EACCES, "no", "/far"), "/far cannot be read or written: no"),
        (OSError(errno.EROFS, "no", "far"), "far cannot be read or written: no"),
        (OSError(errno.ENOSPC, "full"), "full"),
        (FileNotFoundError(errno.ENOENT, "gone", "out/x/y"), None),  # its own files a program has to know
        (FileNotFoundError(errno.ENOENT, "gone", "out/z"), None),
        (FileNotFoundError(errno.ENOENT, "gone", "far"), None),
        (FileNotFoundError("nothing more"), None),
        (OSError(errno.EBADF, "closed", 7), None),
        (PermissionError(errno.EPERM, "no such process"), None),
    ],
)
def test_a_path_of_the_users_is_named_and_a_bug_is_a_traceback(
    error: OSError, said: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from magma.cli import app as cli

    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "cli", fails)
    monkeypatch.setattr(cli, "_add_plugin_commands", lambda: None)
    monkeypatch.setattr(sys, "argv", ["magma", "do", "--out=out/x", "--steps", "3"])
    with pytest.raises(SystemExit if said else OSError) as ended:
        cli.main()
    if said:
        assert isinstance(ended.value, SystemExit)
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"magma: {said}\n"
    else:
        assert ended.value is error


def test_generate_takes_segments_in_their_order(run: tuple[Path, Any], tmp_path: Path) -> None:
    from magma_data.digits.written import load_images

    import magma as library

    picture = tmp_path / "x.png"
    Image.fromarray(load_images("test")[0][0]).save(picture)
    model = library.load(run[0])
    for words, prompt in [
        (["--image", picture, "--text", "A picture of"], [picture, "A picture of"]),
        (["--text", "A", f"--image={picture}", "--text", " b", "--image", picture], ["A", picture, " b", picture]),
    ]:
        done = magma("generate", run[0], *words, "--max-tokens", 6)
        assert done.returncode == 0, done.stderr
        assert done.stdout == model.generate(prompt, max_tokens=6) + "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--imaeg", "x.png"], "--imaeg: allowed with this checkpoint: --text, --image"),
        (["--image", "gone.png"], "gone.png cannot be read as an image"),
        (["loose"], "given 'loose'; allowed: --text TEXT, or --INPUT FILE"),
        (["--text"], "--text needs a value"),
        ([], "the prompt is empty"),
        (["--text", "a", "--device", "gpu"], "device: given 'gpu'; allowed on this machine: cpu"),
        (["--text", "a", "--device", "cuda:99"], "device: given 'cuda:99'"),
    ],
)
def test_generate_explains_mistakes(run: tuple[Path, Any], words: list[str], message: str) -> None:
    done = magma("generate", run[0], *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_here_is_refused_by_every_command(run: tuple[Path, Any]) -> None:
    for words in (["generate", run[0], "--text", "a"], ["eval", run[0], "--task", "digits"]):
        done = magma(*words, "--device", "gpu")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("magma: device: given 'gpu'; allowed on this machine: cpu")
        meta = magma(*words, "--device", "meta")
        assert meta.returncode == 2
        assert "device: given 'meta'" in meta.stderr


def test_a_path_behind_an_equals_sign_may_begin_with_a_tilde(
    run: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell expands `--out ~/x`, but not `--out=~/x`. Text stays text."""
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    words = ["generate", run[0], "--max-tokens", 3, "--image"]
    here, there = magma(*words, tmp_path / "x.png"), magma(*words[:-1], "--image=~/x.png", cwd=run[0])
    assert here.returncode == there.returncode == 0, there.stderr
    assert here.stdout == there.stdout
    (tmp_path / "out").mkdir()
    done = magma("plugin", "new", "lidar", "--kind=task", "--out=~/out", cwd=run[0])
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["magma-lidar"]
    assert expand_home(Path("~nobody-is-called-so/x")) == Path("~nobody-is-called-so/x")
    assert expand_home([Path("~/a"), "~/b", 3]) == [tmp_path / "a", "~/b", 3]


def test_every_commands_paths_may_begin_with_a_tilde() -> None:
    """Those of plugins too."""
    from magma.cli import app as cli

    def commands(program: typer.Typer) -> list[Any]:
        groups = [group.typer_instance for group in program.registered_groups if group.typer_instance]
        return [*program.registered_commands, *itertools.chain(*map(commands, groups))]

    magma("plugin", "list")  # the program has started once
    callbacks = [command.callback for command in commands(cli.cli)]
    assert len(callbacks) > 15
    assert all(hasattr(callback, "accepts_home") for callback in callbacks)


def test_five_mistakes_end_the_run_before_anything_loads(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[lm]\nuse = "gtpj"\n[inputs.image]\nencoder = { use = "clip" }\n'
        'prefix = { use = "linear", dropout = 2 }\n[adapters.mlp]\nuse = "sequental"\n'
        "[train]\nlr = 0\nbatch_size = 4\nsteps = 1"
    )
    began = time.perf_counter()
    done = magma("recipe", "run", tmp_path / "r.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "5 mistakes" in done.stderr
    for path in ("lm.use", "inputs.image.encoder", "inputs.image.prefix.dropout", "adapters.mlp.use", "train.lr"):
        assert f"- {path}" in done.stderr
    assert done.stderr.count("allowed") + done.stderr.count("Installed") >= 5
    assert time.perf_counter() - began < 15
    assert [p.name for p in tmp_path.iterdir()] == ["r.toml"]


def test_list_and_show() -> None:
    listed = magma("recipe", "list").stdout
    assert "quickstart " in listed
    assert "quickstart_frozen" in listed
    shown = magma("recipe", "show", "quickstart", "--set", "train.lr=0.5").stdout
    assert "lr = 0.5" in shown
    assert "head_width = 64" in shown  # a default, spelled out
    plugins = json.loads(magma("plugin", "list", "--json").stdout)
    assert {"kind": "lm", "name": "gptj"}.items() <= plugins["parts"][
        [p["name"] for p in plugins["parts"]].index("gptj")
    ].items()
    assert plugins["broken"] == []


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, processes: int, number: int) -> None:
    """Ctrl-C of a terminal, which reaches the whole group, and what docker or Kubernetes send to one process."""
    out = tmp_path / "run"
    words = ["recipe", "run", "quickstart", "--out", str(out), "--nproc", str(processes), *QUICK]
    words[-5:-4] = ["train.samples=100000"]
    metrics = out / "metrics.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "magma.cli", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stderr is not None
        seen = ""
        while "training" not in seen and child.poll() is None:
            seen += child.stderr.readline()
        send = os.killpg if number == signal.SIGINT else os.kill
        send(child.pid, number)
        seen += child.stderr.read()
    assert child.returncode == 128 + number
    assert "A checkpoint is saved. Resume:" in seen, seen
    (said,) = [line for line in seen.splitlines() if line.startswith("  magma recipe run quickstart")]
    assert said.endswith(" --nproc 2 --resume" if processes == 2 else " --resume")
    assert "--set train.samples=100000" in said
    (found,) = (out / "checkpoints").iterdir()
    steps = int(found.name.removeprefix("step-"))
    assert steps > 0
    assert (found / "manifest.json").is_file()
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert max(row["step"] for row in rows) == steps
    words[words.index("train.samples=100000")] = f"train.samples={32 * (steps + 2)}"
    words[words.index("--nproc") + 1] = "1"  # in this process, which saves a start of Python
    again = magma(*words, "--resume")
    assert again.returncode == 0, again.stderr
    assert f"resuming from step {steps}" in again.stderr
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, steps + 3))


def test_a_broken_command_plugin_is_named_and_left_out(tmp_path: Path) -> None:
    info = tmp_path / "broken_commands-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-commands\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[magma.commands]\nx = not_there\ny = greeting\n")
    (tmp_path / "greeting.py").write_text(
        "import magma\n@magma.hookimpl\ndef magma_commands(cli):\n    @cli.command()\n    def greet(): print('hello')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = start("greet", env=environment)
    assert done.stdout == "hello\n"
    assert "commands of broken-commands left out: ModuleNotFoundError" in done.stderr
