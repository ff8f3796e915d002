"""Weights, configurations and tokenizers of language models: what is read, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import architecture, build
from lm_logits import TOKENS, run
from magma_adapters.bottleneck import Sequential
from magma_lms import weights
from magma_lms.causal import Causal
from magma_lms.gptj import GPTJ

from magma import CheckpointError, Magma, PartError, Tokens, load, save
from magma.interfaces import SUBLAYERS


def test_config_json_beside_the_weights_overrides_sizes(tmp_path: Path) -> None:
    lm = build("gptj")
    assert isinstance(lm, Causal)
    lm.model.save_pretrained(tmp_path)
    assert GPTJ(GPTJ.Config(weights=str(tmp_path))).dim == 32


def test_other_models_are_refused_with_the_reason(tmp_path: Path) -> None:
    from transformers import BertConfig, ViTConfig

    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, eos_token_id=1).save_pretrained(tmp_path)
    with pytest.raises(PartError, match="it is not causal: positions depend on later ones"):
        Causal(Causal.Config(weights=str(tmp_path)))
    with pytest.raises(PartError, match=r'is a "bert", not a "gptj"; use = "causal"'):
        GPTJ(GPTJ.Config(weights=str(tmp_path)))
    with pytest.raises(ValueError, match="an architecture with a model_type"):
        Causal.Config(architecture={"hidden_size": 32})
    with pytest.raises(PartError, match='no causal language model of type "lama".*"llama"'):
        Causal(Causal.Config(architecture={"model_type": "lama"}))
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(PartError, match='given a model of type "vit"; transformers has no causal language model of it'):
        Causal(Causal.Config(weights=str(tmp_path / "vit")))
    with pytest.raises(ValueError, match="either `weights`"):
        Causal.Config()


def test_missing_weights_are_explained(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert GPTJ.problems(GPTJ.Config(weights=gone)) == [f"weights: given {gone!r}, which is not a folder"]
    assert GPTJ.problems(GPTJ.Config(tokenizer=gone)) == [f"tokenizer: given {gone!r}, which is not a folder"]
    assert Causal.problems(Causal.Config(weights=str(tmp_path))) == [
        f"weights: {tmp_path} has no config.json",
        f"weights: {tmp_path} has no *.safetensors or pytorch_model*.bin",
    ]
    assert Causal.problems(Causal.Config(weights="bundled:tiny")) == []
    with pytest.raises(PartError, match=r"lm.weights: given .*gone.*Allowed: a hub name, a folder"):
        Causal(Causal.Config(weights=gone))
    assert "allowed bundled models: tiny" in GPTJ.problems(GPTJ.Config(weights="bundled:huge"))[0]


def test_without_a_tokenizer_only_text_is_refused() -> None:
    lm = build("gpt2")
    run(lm, TOKENS)
    with pytest.raises(PartError, match=r"set lm\.tokenizer"):
        lm.encode("text")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    lm = build("llama")
    assert isinstance(lm, Causal)
    lm.model.save_pretrained(tmp_path)
    with pytest.raises(
        PartError, match=rf"{tmp_path} has no tokenizer .*only read and write token ids.*set lm\.tokenizer"
    ):
        Causal.build(weights=str(tmp_path)).encode("text")


def test_the_bundled_models_tokenizer_gives_text_back_as_it_was() -> None:
    lm = Causal(Causal.Config(architecture=architecture("gpt2"), tokenizer="bundled:tiny"))
    text = " two  spaces , a comma<|endoftext|>"
    assert lm.decode(lm.encode(text)) == text
    assert lm.encode("") == []


FIRST = """
import torch
from magma_lms.causal import Causal
with torch.device("meta"):
    Causal(Causal.Config(architecture={"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}))
from torchaudio.compliance import kaldi
print(kaldi.EPSILON.item())
"""


def test_what_the_library_imports_on_the_way_keeps_its_values() -> None:
    """Its model's modules are imported when the model is built, on meta too; torchaudio's are, and have constants."""
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    assert float(done.stdout) == torch.finfo(torch.float32).eps


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a width"):
        GPTJ.Config(dim=30, heads=4)
    with pytest.raises(ValueError, match="an even rotary_dim of at most 8"):
        GPTJ.Config(dim=32, heads=4, rotary_dim=10)


def test_tensors_that_are_missing_or_left_over_are_no_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lm = build("llama")
    assert isinstance(lm, Causal)
    lm.model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in whole.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(PartError, match=rf"1 are missing or unexpected, the first is {name}"):
        Causal.build(weights=str(tmp_path))
    save_file({**whole, name.replace("1", "2"): whole[name].clone()}, file, {"format": "pt"})
    with pytest.raises(PartError, match=r"the first is model\.layers\.2\.mlp"):
        Causal.build(weights=str(tmp_path))


def test_a_config_that_cannot_be_read_is_no_reason_to_guess(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{ no")
    for part in (GPTJ, Causal):
        with pytest.raises(PartError, match=r"lm\.weights: given .*not a valid JSON.*[^.]\. Allowed: a hub name"):
            part(part.Config(weights=str(tmp_path)))


def test_sizes_stand_in_for_a_config_that_is_not_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 32, "heads": 4, "rotary_dim": 4, "context": 64, "vocab": 96, "eos": 1}
    lm = GPTJ.build(**sizes)
    lm.model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    assert GPTJ.problems(GPTJ.Config(weights=str(tmp_path), **sizes)) == []
    again = GPTJ.build(weights=str(tmp_path), **sizes)
    lm.freeze(), again.freeze()
    assert torch.equal(run(again, TOKENS), run(lm, TOKENS))


def test_torchs_own_format_is_read_where_there_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magma_lms.weights.hub_has", lambda _, pattern: pattern in listed)
    for listed, expected in ((["*.safetensors", "pytorch_model*.bin"], True), (["pytorch_model*.bin"], False)):
        assert weights.has_safetensors("some/name") is expected
        for pattern in listed:
            (tmp_path / pattern.replace("*", "model")).touch()
        assert weights.has_safetensors(str(tmp_path)) is expected
        for file in tmp_path.iterdir():
            file.unlink()
    listed = []
    assert weights.has_safetensors("some/name")  # whoever reads the weights says what is wrong
    assert weights.has_safetensors(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(name: str, **_: Any) -> None:
        asked.append(name)
        raise RuntimeError("no network")

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    assert GPTJ(GPTJ.Config(weights="no/such")).dim == 4096  # from its sizes
    assert asked == []
    message = (
        r"lm\.weights: given 'no/such', which cannot be read: no/such is not in .* hub reports: no network.*"
        r" file\. Allowed: "
    )
    with pytest.raises(PartError, match=message):
        Causal(Causal.Config(weights="no/such"))
    assert asked == ["no/such"]
    with pytest.raises(PartError, match=message):
        GPTJ.build(layers=1, dim=32, heads=4, rotary_dim=4, weights="no/such")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": 2}, r'lm\.architecture: gpt2 has no field "n_layers"\. Did you mean "n_layer"'),
        ({"n_layer": "two"}, r"lm\.architecture: a gpt2 with these fields cannot be built: .*n_layer"),
        ({"num_attention_heads": 5}, r"lm: a gpt2 with this configuration cannot be built: .*divisible"),
        ({"hidden_size": -32}, r"lm: a gpt2 with this configuration cannot be built: .*negative"),
        ({"activation_function": "relu99"}, r"lm: a gpt2 with this configuration cannot be built: KeyError: 'relu99'"),
        ({"eos_token_id": 96}, r"its eos_token_id is 96; allowed: a token id, 0 to 95"),
        ({"eos_token_id": None}, r"its eos_token_id is None"),
    ],
)
def test_architectures_that_make_no_model_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=f"(?s){message}"):
        Causal(Causal.Config(architecture={**architecture("gpt2"), **fields}))


def test_a_configuration_with_a_value_of_a_wrong_type_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": "two"}')
    (tmp_path / "model.safetensors").touch()
    message = r"lm\.weights: given .*, which cannot be read: .*field 'n_layer': TypeError.* Allowed: a hub name"
    with pytest.raises(PartError, match=message):
        Causal(Causal.Config(weights=str(tmp_path)))


def test_blocks_may_have_another_width_than_the_embeddings() -> None:
    lm = Causal(Causal.Config(architecture={**architecture("opt"), "word_embed_proj_dim": 16}))
    assert (lm.embedding_dim, lm.dim, lm.output_dim) == (16, 32, 16)


def test_checkpoints_with_the_names_of_earlier_versions_load(tmp_path: Path) -> None:
    """Adapters used to be modules around sublayers, whose names were those of the frozen tensors inside."""
    lm = build("opt")
    lm.model.save_pretrained(tmp_path / "opt")
    lm = Causal.build(weights=str(tmp_path / "opt"))
    for sublayer in SUBLAYERS:
        lm.add_adapters(sublayer, lambda: Sequential.build(lm.dim))
    lm.freeze()
    model = Magma(lm)
    save(model, tmp_path / "run")
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())

    def former(name: str) -> str:
        name = re.sub(r"\.(fc[12]\.\w+)$", r".fc1.sublayer.\1", name)
        return name.replace(".self_attn.", ".self_attn.sublayer.")

    manifest["frozen"] = {former(name): sha256 for name, sha256 in manifest["frozen"].items()}
    assert sum(".sublayer." in name for name in manifest["frozen"]) == 2 * (4 + 8)
    path.write_text(json.dumps(manifest))
    loaded = load(tmp_path / "run")
    assert torch.equal(loaded.logits([Tokens(TOKENS[0])]), model.logits([Tokens(TOKENS[0])]))

    changed = next(name for name in manifest["frozen"] if ".sublayer." in name)
    manifest["frozen"][changed] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="1 of 37 frozen tensors differ"):
        load(tmp_path / "run")
