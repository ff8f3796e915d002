"""What a launcher's variables say of this process."""

from __future__ import annotations

import pytest
from program import magma as program

from magma import TrainingError
from magma.system.ranks import Ranks, is_first, ranks

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WHOLE, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_a_process_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ranks(), is_first()) == (Ranks(0, 1), True)
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a job that is none of ours
    assert ranks() == Ranks(0, 1)


def test_a_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert (ranks(), is_first()) == (Ranks(1, 2), False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": None}, "RANK=1 is set in the environment, and WORLD_SIZE is not"),
        (
            {"WORLD_SIZE": None, "MASTER_ADDR": None, "MASTER_PORT": ""},
            "and WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not",
        ),
        ({"RANK": "first"}, "RANK in the environment: given 'first'; allowed: a whole number, 0 or more"),
        ({"RANK": "-1"}, "RANK in the environment: given '-1'; allowed: a whole number, 0 or more"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE in the environment: given '0'; allowed: a whole number, 1 or more"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT in the environment: given 'http'; allowed: a whole number, 1 or more"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK in the environment: given 'x'; allowed: a whole number, 0 or more"),
        ({"RANK": "2"}, "RANK in the environment: given 2; allowed: less than WORLD_SIZE, which is 2"),
    ],
)
def test_incomplete_variables_are_named(
    changes: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**WHOLE, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError) as raised:
        ranks()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("rank", ["0", "one"])
def test_the_program_says_so_before_it_trains(rank: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    done = program("recipe", "run", "quickstart", "--out", f"{tmp_path}/run")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"magma: RANK={rank} is set in the environment, and WORLD_SIZE, MASTER_ADDR, MASTER_PORT are"
    )
