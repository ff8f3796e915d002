"""The formats in which weights are read, and where they are found."""

from __future__ import annotations

import json
import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from gguf_files import write_gguf
from lm_logits import TOKENS, run
from magma_lms.causal import Causal
from magma_lms.loading import build_model, load_model, read_architecture
from magma_lms.weights import Source, has_safetensors, locate

from magma import PartError

VOCABULARY = {"vocab_size": 768, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
"""That of the bundled tokenizer."""


@pytest.fixture
def llama() -> Any:
    """A small Llama of the library."""
    return build("llama", num_key_value_heads=2, **VOCABULARY).model


def same_logits(lm: Causal, model: Any) -> bool:
    lm.freeze()
    return torch.allclose(run(lm, TOKENS), model(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_shards_of_safetensors(tmp_path: Path, llama: Any) -> None:
    llama.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same_logits(Causal.build(weights=str(tmp_path)), llama)


def test_torchs_format_is_read_without_running_code(tmp_path: Path, llama: Any) -> None:
    llama.config.save_pretrained(tmp_path)
    torch.save(llama.state_dict(), tmp_path / "pytorch_model.bin")
    assert same_logits(Causal.build(weights=str(tmp_path)), llama)

    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "attacked"),)

    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"lm_head.weight": Attack()}, file, protocol=2)
    with pytest.raises(PartError, match=r"lm\.weights: given .*cannot be read: "):
        Causal.build(weights=str(tmp_path))
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0"])
def test_gguf(tmp_path: Path, llama: Any, type_name: str) -> None:
    from transformers import AutoModelForCausalLM

    path = tmp_path / "small.gguf"
    write_gguf(llama, path, type_name)
    lm = Causal.build(weights=str(path))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype="auto")
    assert {tensor.dtype for tensor in lm.model.parameters()} == {theirs.dtype}
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in lm.model.state_dict().items())
    if type_name == "F32":
        assert same_logits(lm, llama)
    assert lm.encode("A picture of") == Causal.build(weights=str(path), tokenizer="bundled:tiny").encode("A picture of")
    assert lm.eos == 0
    assert lm.control_tokens == {"<|endoftext|>": 0}


def test_a_gguf_model_is_exported_as_any_other(tmp_path: Path, llama: Any) -> None:
    write_gguf(llama, tmp_path / "small.gguf", "Q8_0")
    lm = Causal.build(weights=str(tmp_path / "small.gguf"))
    lm.export(tmp_path / "exported")
    again = Causal.build(weights=str(tmp_path / "exported"))
    lm.freeze(), again.freeze()
    assert torch.equal(run(again, TOKENS), run(lm, TOKENS))
    assert again.encode("seven") == lm.encode("seven")


def test_gguf_files_that_cannot_be_read(tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.gguf"
    assert Causal.problems(Causal.Config(weights=str(path))) == [f"weights: given {str(path)!r}, which is not a file"]
    with pytest.raises(PartError, match=r"lm\.weights: given .*small\.gguf', which is not a file\. Allowed: a hub"):
        Causal.build(weights=str(path))
    write_gguf(llama, path)
    assert Causal.problems(Causal.Config(weights=str(path))) == []
    with pytest.raises(PartError, match=r"lm\.quantize: given 'nf4', but a GGUF file is dequantized when it is read"):
        Causal.build(weights=str(path), quantize="nf4")
    content = path.read_bytes()
    for damaged in (b"", b"not GGUF", content[:1000], content[:-1000]):
        path.write_bytes(damaged)
        with pytest.raises(PartError, match=r"lm\.weights: given .*small\.gguf', which cannot be read"):
            Causal.build(weights=str(path))
    monkeypatch.setattr("magma_lms.gguf.find_spec", lambda name: None if name == "gguf" else find_spec(name))
    assert Causal.problems(Causal.Config(weights=str(path)))[0].endswith("needs gguf: pip install gguf")
    with pytest.raises(PartError, match=r"lm\.weights: reading a GGUF file needs gguf: pip install gguf"):
        Causal.build(weights=str(path))


def test_a_model_in_an_installed_package(tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "small_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PartError, match=r"'package:small_model', which has 0 GGUF files; allowed: a package with one"):
        Causal.build(weights="package:small_model")
    write_gguf(llama, package / "one.gguf")
    assert locate("package:small_model") == (str(package), "one.gguf")
    assert same_logits(Causal.build(weights="package:small_model"), llama)
    (package / "two.gguf").touch()
    assert Causal.problems(Causal.Config(weights="package:small_model")) == [
        "weights: given 'package:small_model', which has 2 GGUF files; allowed: package:small_model/one.gguf, "
        "package:small_model/two.gguf"
    ]
    assert locate("package:small_model/one.gguf") == (str(package), "one.gguf")
    for missing in ("package:not_there", "package:", "package:a.b"):
        with pytest.raises(PartError, match=f"given '{missing}', but no package .* is installed"):
            locate(missing)


def test_a_revision_in_a_cache_of_its_own(tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **options: Any) -> None:
        raise RuntimeError(f"no network, asked for {options.get('revision')}")

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    repository = tmp_path / "cache" / "models--some--llama"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "second").write_text("b" * 40)
    llama.save_pretrained(repository / "snapshots" / ("b" * 40))
    write_gguf(llama, repository / "snapshots" / ("b" * 40) / "small.gguf")
    there = {"weights": "some/llama", "cache_dir": str(tmp_path / "cache")}
    config = Causal.Config(**there, revision="second")
    assert Causal.problems(config) == []
    assert has_safetensors("some/llama", revision="second", cache_dir=str(tmp_path / "cache"))
    lm = Causal(config)
    lm.load_weights()
    assert same_logits(lm, llama)
    in_gguf = {**there, "weights": "some/llama/small.gguf", "revision": "second"}
    assert Causal.problems(Causal.Config(**in_gguf)) == []
    assert same_logits(Causal.build(**in_gguf), llama)
    for wrong, asked in (({}, None), ({"revision": "third"}, "third"), ({"cache_dir": None}, None)):
        problem = Causal.problems(Causal.Config(**{**there, **wrong}))[0]
        assert f"no network, asked for {asked}" in problem
        assert ("--revision third" in problem) == (asked == "third")
        with pytest.raises(PartError, match="some/llama is not in the cache"):
            Causal.build(**{**there, **wrong})


def test_how_weights_are_read_needs_weights() -> None:
    for options in ({"revision": "main"}, {"quantize": "nf4"}):
        with pytest.raises(ValueError, match="`revision` and `quantize` only together with `weights`"):
            Causal.Config(architecture={"model_type": "llama"}, **options)


def test_a_revision_is_for_hub_names(tmp_path: Path, llama: Any) -> None:
    llama.save_pretrained(tmp_path)
    assert Causal.problems(Causal.Config(weights=str(tmp_path), revision="main")) == [
        f"revision: given 'main', but {tmp_path} is a folder; allowed: for hub names"
    ]
    assert Source("some/name", "other/name", revision="main").hub("tokenizer") == {}
    assert Source("some/name", revision="main").hub("tokenizer") == {"revision": "main"}
    with pytest.raises(PartError, match=r"lm\.revision: given 'main', but .* is a folder; allowed: for hub names"):
        Causal.build(weights=str(tmp_path), revision="main")


def test_a_file_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    for given in ("model.txt", str(tmp_path / "model.txt")):
        assert Causal.problems(Causal.Config(weights=given)) == [
            f"weights: given {str(tmp_path / 'model.txt')!r}, which is not a folder"
        ]
        with pytest.raises(PartError, match=r"lm\.weights: given .*model\.txt', which is not a folder\. Allowed"):
            Causal.build(weights=given)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_beside_the_weights_runs_only_if_the_recipe_allows_it(
    tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text(CODE)
    fields = json.loads((tmp_path / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "model_type": "own", "auto_map": classes}))
    message = (
        r"lm\.remote_code: .* comes as Python code beside the weights, which is not run\. Allowed: lm\.remote_code"
    )
    with pytest.raises(PartError, match=message):
        Causal.build(weights=str(tmp_path))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    source = Source(str(tmp_path), remote_code=True)
    architecture = read_architecture(source)
    model = load_model(source, architecture)
    assert type(model).__name__ == type(build_model(source, architecture)).__name__ == "OwnForCausalLM"
    torch.testing.assert_close(model(TOKENS).logits, llama(TOKENS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_library_that_quantizes_is_named(tmp_path: Path, llama: Any, monkeypatch: Any, quantize: str) -> None:
    llama.save_pretrained(tmp_path)
    monkeypatch.setattr("magma_lms.quantization.find_spec", lambda _: None)
    needed = f"given '{quantize}', which needs accelerate and bitsandbytes: pip install accelerate bitsandbytes"
    assert Causal.problems(Causal.Config(weights=str(tmp_path), quantize=quantize)) == [f"quantize: {needed}"]
    with pytest.raises(PartError, match=rf"lm\.quantize: {needed}"):
        Causal.build(weights=str(tmp_path), quantize=quantize)
