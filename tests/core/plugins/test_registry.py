"""Discovery, provenance, and harm that stays with who does it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from magma import PluginError
from magma.plugins.registry import Registry, installed


def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **modules: str) -> Registry:
    """A registry over modules written here."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    return Registry([EntryPoint(name, name, "magma") for name in modules])


GOOD = """
import magma
class Ears(magma.Encoder):
    name = "{name}"
    modality = "sound"
    def accepts(self, raw): return False
    def prepare(self, raw, rng=None): raise magma.InputError("no")
    def dummy_item(self): ...
    def forward(self, x): ...
@magma.hookimpl
def magma_parts(): return [Ears]
"""


def test_first_party_parts_are_found_through_entry_points_alone() -> None:
    entry = installed().find("encoder", "clip")
    assert entry.plugin.distribution == "magma-multimodal"
    adapters = {e.name for e in installed().entries() if e.kind == "adapter"}
    assert adapters == {
        "sequential",
        "parallel",
        "lora",
        "ia3",
        "gated_cross_attention",
        "visual_expert",
        "prefix_tuning",
    }


def test_an_unknown_name_is_answered_with_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        PluginError, match=r'no encoder is called "clipp"\. Did you mean "clip"\? Installed: .*, clip \(magma'
    ):
        installed().find("encoder", "clipp")
    with pytest.raises(PluginError, match="Installed: none"):
        registry(monkeypatch, tmp_path, ears_a=GOOD.format(name="ears")).find("prefix", "linear")


def test_broken_plugins_disable_only_themselves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = registry(
        monkeypatch,
        tmp_path,
        bad_quit="raise SystemExit(3)",
        bad_newer=GOOD.format(name="newer") + "\nMAGMA_API = 99",
        bad_version=GOOD.format(name="odd") + "\nMAGMA_API = '1'",
        known=GOOD.format(name="known") + "\nMAGMA_API = 1",
        bad_import="import a_library_that_is_not_there",
        bad_exit="raise RuntimeError('at import')",
        bad_parts="import magma\n@magma.hookimpl\ndef magma_parts(): return [int]",
        bad_abstract=GOOD.format(name="half").replace("def dummy_item", "def other"),
        good=GOOD.format(name="ears"),
    )
    assert found.find("encoder", "ears").name == "ears"
    problems = {plugin.name: plugin.problem for plugin in found.plugins if plugin.problem}
    broken = {"bad_import", "bad_exit", "bad_parts", "bad_abstract", "bad_quit", "bad_newer", "bad_version"}
    assert set(problems) == broken
    assert found.find("encoder", "known").name == "known"
    assert "it needs version 99 of the plugin API, this MAGMA has 1" in problems["bad_newer"]
    assert "MAGMA_API is '1'; allowed: a whole number" in problems["bad_version"]
    assert "SystemExit: 3" in problems["bad_quit"]
    assert "a_library_that_is_not_there" in problems["bad_import"]
    assert "is not a subclass of Encoder" in problems["bad_parts"]
    assert "Ears is abstract: it does not define dummy_item" in problems["bad_abstract"]
    with pytest.raises(PluginError, match=r"broken: .*bad_import.*a_library_that_is_not_there"):
        found.find("encoder", "half")


def test_two_plugins_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = GOOD.format(name="ears")
    found = registry(monkeypatch, tmp_path, one=text, two=text)
    with pytest.raises(PluginError, match='encoder "ears" is provided by unknown 0 and unknown 0'):
        found.find("encoder", "ears")
    assert {found.status(entry) for entry in found.entries()} == {"clash: also provided by unknown 0"}
    assert installed().status(installed().find("encoder", "clip")) == "ok"


def test_parts_are_called_by_their_name_or_by_who_brings_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = registry(monkeypatch, tmp_path, hearing=GOOD.format(name="ears"), seeing="raise RuntimeError('no')")
    for name in ("ears", "hearing"):
        assert [entry.name for entry in found.find_all(name)] == ["ears"]
    with pytest.raises(PluginError, match="is broken: RuntimeError: no"):
        found.find_all("seeing")
    with pytest.raises(PluginError, match='no part and no plugin is called "earz". Did you mean "ears"'):
        found.find_all("earz")
    assert {entry.kind for entry in installed().find_all("linear")} == {"prefix", "head"}


def test_importing_magma_imports_nothing_heavy() -> None:
    code = "import magma, sys, json; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "open_clip", "timm", "deepspeed", "pydantic"} & set(json.loads(out.stdout))


def test_looking_parts_up_imports_no_model_library() -> None:
    code = (
        "import sys; from magma.plugins.registry import installed; installed().find('encoder', 'clip');"
        "heavy = {'transformers', 'open_clip', 'timm', 'deepspeed', 'sklearn', 'torchaudio'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
