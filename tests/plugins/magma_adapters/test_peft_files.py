"""`magma export peft`, `magma import peft` and `magma export lm --merge`, against peft and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import OURS, build
from lm_logits import TOKENS
from magma_adapters.bottleneck import Sequential
from magma_adapters.lora import LoRA
from magma_adapters.peft_export import export, to_folder
from magma_adapters.peft_import import to_checkpoint
from magma_lms.causal import Causal
from magma_lms.gptj import GPTJ
from magma_lms.transformers_lm import TransformersLM
from peft_models import difference, ia3, logits, lora, randomized
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import ToyEncoder, ToyPrefix

import magma
from magma import AdapterTable, CheckpointError, Input, InputError, Magma, PartError
from magma.cli.export import export_lm

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft calls transformers
Tables = Callable[[], dict[str, AdapterTable]]


def two_sizes() -> dict[str, AdapterTable]:
    """LoRA of two ranks, in parts of the blocks."""

    def table(at: str, blocks: str | None = None, **fields: Any) -> AdapterTable:
        return AdapterTable(randomized(lambda site: LoRA.build(site, **fields)), at, blocks)

    return {
        "attention": table("*attn*", rank=4, alpha=6),
        "mlp": table("mlp.*", "last 1", rank=2, alpha=3),
    }


CASES: dict[str, tuple[str, Tables]] = {
    "lora, llama": ("llama", two_sizes),
    "lora, gptj on its own path": (OURS, two_sizes),
    "lora, gpt2": ("gpt2", lambda: lora(rank=4, alpha=6, rslora=True)),
    "dora, llama": ("llama", lambda: lora(rank=4, alpha=6, dora=True)),
    "dora, gpt2": ("gpt2", lambda: lora(rank=4, alpha=6, dora=True)),
    "ia3, llama": ("llama", lambda: ia3("llama")),
    "ia3, gpt2": ("gpt2", lambda: ia3("gpt2")),
}


class Case:
    """A checkpoint with adapters, its bare language model, and its logits."""

    def __init__(self, folder: Path, family: str, tables: Tables) -> None:
        self.folder, self.weights, self.run = folder, folder / "weights", folder / "run"
        build(family).export(self.weights)
        part = GPTJ if family == OURS else Causal
        self.model = Magma(part.build(weights=str(self.weights)), adapters=tables()).eval()
        magma.save(self.model, self.run)
        self.logits = self.of(self.model)
        with self.model.adapters_disabled():
            assert difference(self.of(self.model), self.logits) > 1e-2, "the adapters do nothing"

    @staticmethod
    @torch.no_grad()
    def of(model: Magma) -> Tensor:
        assert isinstance(model.lm, TransformersLM)
        return logits(model.lm)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("peft"), *CASES[request.param])


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """LoRA in a GPT-2, exported."""
    found = Case(tmp_path_factory.mktemp("simple"), "gpt2", lambda: lora(rank=4))
    to_folder(found.run, found.folder / "peft")
    return found


@torch.no_grad()
def of_library(folder: Path, adapters: Path | None = None) -> Tensor:
    """Logits of a model of transformers, with adapters of peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapters is not None:
        model = PeftModel.from_pretrained(model, adapters)
    found: Tensor = model.eval()(input_ids=TOKENS).logits
    return found


def test_a_checkpoint_and_an_exported_and_imported_one_compute_the_same(case: Case) -> None:
    assert torch.equal(case.of(magma.load(case.run)), case.logits)
    out = case.folder / "peft"
    (line,) = to_folder(case.run, out)
    assert f"{sum(p.numel() for a in case.model.lm.all_adapters() for p in a.parameters()):,} parameters" in line
    assert difference(of_library(case.weights, out), case.logits) <= 1e-6
    to_checkpoint(out, case.folder / "back")
    back = magma.load(case.folder / "back")
    assert difference(case.of(back), case.logits) <= 1e-6  # it is a `causal`
    again = export(back)[1]
    assert all(torch.equal(tensor, again[name]) for name, tensor in export(case.model)[1].items())


def test_a_merged_language_model_computes_the_same(case: Case) -> None:
    out = case.folder / "merged"
    export_lm(case.run, out, merge=True)
    found = of_library(out)
    assert torch.allclose(found, case.logits, atol=1e-5, rtol=1e-5)
    export_lm(case.run, case.folder / "bare")
    assert torch.equal(of_library(case.folder / "bare"), of_library(case.weights))


def test_folders_of_peft_load(case: Case, tmp_path: Path) -> None:
    """As peft itself writes them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    to_folder(case.run, tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(case.weights, dtype=torch.float32)
    PeftModel.from_pretrained(model, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    lines = to_checkpoint(tmp_path / "theirs", tmp_path / "run", lm=str(case.weights))
    assert lines
    assert difference(case.of(magma.load(tmp_path / "run")), case.logits) <= 1e-6


def test_an_import_names_its_tables(simple: Case, tmp_path: Path) -> None:
    (line,) = to_checkpoint(simple.folder / "peft", tmp_path / "run")
    assert line == (
        "adapters.lora: lora at linears: rank = 4, alpha = 8.0, dropout = 0.0, rslora = False, dora = False"
    )
    tensors = load_file(simple.folder / "peft" / "adapter_model.safetensors")
    folder = copy_of(simple, tmp_path / "part", {n: t for n, t in tensors.items() if ".1.attn." in n})
    assert [
        line.partition(":")[0] + line.partition("at ")[2].partition(":")[0]
        for line in to_checkpoint(folder, tmp_path / "other")
    ] == ["adapters.lora_attn_c_attnattn.c_attn in blocks [1]", "adapters.lora_attn_c_projattn.c_proj in blocks [1]"]


def test_an_import_starts_a_recipe(simple: Case, tmp_path: Path) -> None:
    """The part of the same name starts from it."""
    from magma.training.initialize import load_initial_weights

    to_checkpoint(simple.folder / "peft", tmp_path / "run")
    recipe = {
        "name": "next",
        "lm": {"use": "causal", "weights": str(simple.weights)},
        "adapters": {"lora": {"use": "lora", "at": "linears", "rank": 4}},
    }
    model = magma.assemble(recipe).eval()
    origins = load_initial_weights(model, tmp_path / "run", torch.float32)
    assert origins == {"lm": "own weights", "adapters.lora": "checkpoint"}
    assert torch.equal(simple.of(model), simple.logits)


def copy_of(case: Case, folder: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """The exported folder with other tensors or keys."""
    source = case.folder / "peft"
    folder.mkdir()
    save_file(tensors or load_file(source / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    config = {**json.loads((source / "adapter_config.json").read_text()), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type: given 'LOHA'; allowed: 'LORA', 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: given 'pissa', which changes the frozen weights"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: given \['lm_head'\]; allowed: not used"),
        ({"bias": "all"}, "bias: given 'all'; allowed: not used"),
        ({"base_model_name_or_path": None}, "has no base_model_name_or_path: name the language model with --lm"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    simple: Case, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((CheckpointError, InputError), match=message):
        to_checkpoint(copy_of(simple, tmp_path / "peft", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (("lora_A", "lora_E"), "is no tensor of a LoRA or .IA.\\^3 adapter of a linear layer"),
        (("attn.c_attn", "attn.query"), "has no linear layer transformer.h.0.attn.query"),
        (("attn.c_attn", "attn.c_proj"), r"tensors of transformer.h.\d.attn.c_proj: given .* allowed: .*"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    simple: Case, tmp_path: Path, rename: tuple[str, str], message: str
) -> None:
    tensors = load_file(simple.folder / "peft" / "adapter_model.safetensors")
    wrong = {name.replace(*rename): tensor for name, tensor in reversed(tensors.items())}
    with pytest.raises(CheckpointError, match=message):
        to_checkpoint(copy_of(simple, tmp_path / "peft", wrong), tmp_path / "run")


def others(name: str) -> Any:
    made = {
        "other": lambda: {"mlp": AdapterTable(lambda: Sequential.build(32))},
        "both": lambda: {**lora(rank=2), **ia3("gpt2")},
        "twice": lambda: {"one": lora(rank=2)["lora"], "two": lora(rank=2)["lora"]},
        "variants": lambda: {
            "one": AdapterTable(lambda site: LoRA.build(site), "attn.*"),
            "two": AdapterTable(lambda site: LoRA.build(site, dora=True), "mlp.*"),
        },
        "none": dict,
    }
    return made[name]()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", 'adapters.mlp: given "sequential"; allowed in peft\'s format: adapters "lora", or adapters "ia3"'),
        ("both", r'given "lora" \(adapters.lora\) and "ia3" \(adapters.inputs\); allowed'),
        ("twice", "adapters.two: given a second adapter of transformer.h.0.attn.c_attn; allowed in peft's format: one"),
        ("variants", r"dora of the adapters: given \[False, True\]; allowed in peft's format: one value"),
        ("none", "given no adapters; allowed in peft's format"),
    ],
)
def test_what_peft_cannot_express_is_refused(name: str, message: str) -> None:
    with pytest.raises(PartError, match=message):
        export(Magma(build("gpt2"), adapters=others(name)))


@pytest.mark.usefixtures("toys")
def test_inputs_are_left_out_on_demand(simple: Case) -> None:
    inputs = {"number": Input(ToyEncoder.build(), ToyPrefix.build(6, 4, 32))}
    model = Magma(build("gpt2"), inputs, lora(rank=4))
    with pytest.raises(PartError, match=r"given a model with inputs.number; allowed in peft's format: .*--adapters-on"):
        export(model)
    assert export(model, adapters_only=True)[1].keys() == export(simple.model)[1].keys()


def test_nested_adapters_merge_and_others_name_their_table() -> None:
    lm = build("gpt2")
    tables = {"one": lora(rank=2)["lora"], **ia3("gpt2"), "two": lora(rank=3, dora=True)["lora"]}
    Magma(lm, adapters=tables).eval()
    with torch.no_grad():
        before = logits(lm)
        lm.merge_adapters()
        assert not lm.adapters
        assert torch.allclose(logits(lm), before, atol=1e-4, rtol=1e-4)
    lm = build("gpt2")
    Magma(lm, adapters={**lora(rank=2), "mlp": AdapterTable(lambda: Sequential.build(32))})
    weights = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    with pytest.raises(PartError, match='adapters.mlp: "sequential" cannot be merged'):
        lm.merge_adapters()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in lm.state_dict().items())


def test_adapters_that_act_with_some_inputs_only_neither_merge_nor_go_to_peft() -> None:
    lm = build("gpt2")
    model = Magma(lm, adapters=lora(rank=2))
    for adapter in lm.all_adapters():
        adapter.only_with = ("image",)
    with pytest.raises(PartError, match="adapters.lora: cannot be merged: it acts only with image"):
        lm.merge_adapters()
    with pytest.raises(PartError, match=r"adapters.lora.only_with: given \['image'\]; allowed in peft's format"):
        export(model)


def test_shared_weights_do_not_merge() -> None:
    lm = build("gpt2")
    Magma(lm, adapters=lora(rank=2))
    first, second = (block.mlp.c_fc for block in lm.blocks)
    second.weight = first.weight
    with pytest.raises(PartError, match="adapters.lora: mlp.c_fc of block 0 cannot be merged: .* several layers share"):
        lm.merge_adapters()


def test_commands(simple: Case, tmp_path: Path) -> None:
    from magma_adapters import commands

    commands.export_peft(simple.run, tmp_path / "peft")
    commands.import_peft(tmp_path / "peft", tmp_path / "run", lm=str(simple.weights))
    assert torch.equal(simple.of(magma.load(tmp_path / "run")), simple.logits)
    with pytest.raises(InputError, match="exists already"):
        commands.export_peft(simple.run, tmp_path / "peft")
    with pytest.raises(InputError, match="exists already"):
        commands.import_peft(tmp_path / "peft", tmp_path / "run")
