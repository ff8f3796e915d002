"""Folders and hub names: what is here, what can be had, and what keeps it from being read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magma import find_local_folder, hub_has, hub_problem, is_folder, source_problems
from magma.hub import ask_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub that knows some/name, of which some/cached is in the cache; what it was asked for."""
    asked: list[str] = []
    cache = tmp_path / "cache"
    cache.mkdir()
    for file in ("config.json", "pytorch_model.bin"):
        (cache / file).touch()

    def known(name: str, **_: Any) -> None:
        asked.append(name)
        if name not in ("some/name", "some/silent"):
            raise RuntimeError("404.\nIn a line that nobody needs")

    def listed(name: str) -> list[str]:
        if name == "some/silent":
            raise RuntimeError("too many requests")
        return ["config.json", "model-00001-of-00002.safetensors"]

    def cached(name: str, file: str) -> str | None:
        return str(cache / file) if name == "some/cached" and (cache / file).is_file() else None

    monkeypatch.setattr("huggingface_hub.model_info", known)
    monkeypatch.setattr("huggingface_hub.list_repo_files", listed)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    ask_hub.cache_clear()
    yield asked
    ask_hub.cache_clear()


def test_how_a_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(map(is_folder, ["/gone", "./gone", "../gone", "~/gone", "a/b/c", "."]))
    assert not any(map(is_folder, ["gpt2", "some/name"]))
    (tmp_path / "some/name").mkdir(parents=True)
    assert is_folder("some/name")


def test_what_is_at_hand_is_in_a_folder_or_in_the_cache(tmp_path: Path, hub: list[str]) -> None:
    (tmp_path / "model.safetensors").touch()
    assert find_local_folder(str(tmp_path), "*.bin", "*.safetensors") == tmp_path
    assert find_local_folder(str(tmp_path), "*.bin") is None
    assert find_local_folder(str(tmp_path / "gone"), "*") is None
    assert find_local_folder("some/cached", "*.safetensors", "*.bin") == tmp_path / "cache"
    assert find_local_folder("some/cached", "*.safetensors") is None
    assert find_local_folder("some/name", "*") is None
    assert hub == []


def test_the_hub_is_asked_once_and_may_not_answer(hub: list[str]) -> None:
    assert hub_has("some/name", "*.bin", "*.safetensors")
    assert not hub_has("some/name", "*.bin")
    assert not hub_has("no/such", "*")
    assert not hub_has("some/silent", "*")
    assert hub_problem("some/name") is None
    assert hub == ["some/name", "no/such", "some/silent"]


def test_what_keeps_a_source_from_being_read(tmp_path: Path, hub: list[str]) -> None:
    wanted = (("config.json",), ("*.safetensors", "*.bin"))
    gone = str(tmp_path / "gone")
    assert source_problems(gone, *wanted) == [f"given {gone!r}, which is no folder"]
    assert source_problems(str(tmp_path), *wanted) == [
        f"{tmp_path} has no config.json",
        f"{tmp_path} has no *.safetensors or *.bin",
    ]
    assert source_problems(str(tmp_path / "cache"), *wanted) == []
    assert source_problems("some/cached", *wanted) == source_problems("some/name", *wanted) == []
    (problem,) = source_problems("some/cached", cached="tokenizer.json")
    assert problem.startswith("some/cached is not in the cache, and the hub says: 404. Where there is a network")
    assert hub == ["some/name", "some/cached"]
