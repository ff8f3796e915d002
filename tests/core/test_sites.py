"""Which sites a table means, which blocks it chooses, and adapters of both generations at the same language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import RECIPE, ToyAdapter, ToyLM

import magma
from magma import Adapter, AdapterTable, InputError, Magma, PartConfig, PartError, Site
from magma.plan import plan
from magma.sites import choose_blocks, match_sites

pytestmark = pytest.mark.usefixtures("toys_at_sites")

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj")
SITES = [Site(path, block, 4, 4) for block in range(3) for path in ("attention", "mlp", "block", *LINEARS)]
GPTJ = {"use": "gptj", "layers": 3, "dim": 16, "heads": 2, "rotary_dim": 4, "context": 32, "vocab": 64, "eos": 1}
SEQUENTIAL = {"use": "sequential"}


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("attention", ["attention"]),
        ("block", ["block"]),
        ("linears", LINEARS),
        ("*", LINEARS),
        ("self_attn.*_proj", LINEARS[:3]),
        ("*.[qk]_proj", LINEARS[:2]),
        ("mlp.up_proj", LINEARS[3:]),
    ],
)
def test_a_name_or_a_glob_means_sites_in_every_block(at: str, expected: Sequence[str]) -> None:
    found = match_sites(SITES, at)
    assert [(site.path, site.block) for site in found] == [(path, block) for block in range(3) for path in expected]


def test_what_matches_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(PartError, match=r'given "q_proj"; allowed: .*linears, or a glob over self_'):
        match_sites(SITES, "q_proj")
    hybrid = [site for site in SITES if site.path != "attention" or site.block == 1]
    with pytest.raises(PartError, match=r"blocks \[0, 2\]; allowed: blocks that have it, \[1\]"):
        match_sites(hybrid, "attention", [0, 2])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", None),
        ([0, 2, 5], [0, 2, 5]),
        ("first 3", [0, 1, 2]),
        ("last 2", [6, 7]),
        ("every 4", [3, 7]),
        ("every 3", [2, 5]),
        ("every 1", list(range(8))),
    ],
)
def test_a_choice_of_blocks(spec: Any, expected: list[int] | None) -> None:
    assert choose_blocks(spec, 8) == expected


@pytest.mark.parametrize("spec", ["some", "first", "first 0", "last 9", [8], [-1], [], [1, 1], [True], 3, "every 9"])
def test_another_choice_is_refused(spec: Any) -> None:
    with pytest.raises(PartError, match="allowed"):
        choose_blocks(spec, 8)


def test_a_weight_is_that_of_torch_whatever_the_library_stores() -> None:
    linear = nn.Linear(3, 5)
    assert torch.equal(Site("q", 0, 3, 5, linear).weight, linear.weight)
    stored = nn.Module()
    stored.weight = nn.Parameter(linear.weight.T.detach().clone())
    site = Site("q", 0, 3, 5, stored, transposed=True)
    assert torch.equal(site.weight, linear.weight)
    assert site.bias is None
    with torch.no_grad():
        site.weight.add_(1)  # a view: an adapter can be folded into it
    assert torch.equal(stored.weight.T, linear.weight + 1)
    with pytest.raises(PartError, match="attention of block 2: given no linear layer"):
        _ = Site("attention", 2, 3, 3).weight


# Adapters


class OldStyle(Adapter):
    """As third-party packages have it: built with a width, two arguments."""

    name = "old"

    def __init__(self, config: PartConfig, dim: int) -> None:
        super().__init__(config, dim)  # type: ignore[arg-type]
        self.layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return sublayer(x) + self.layer(x)


def gptj(**tables: Any) -> Magma:
    recipe = {"name": "toy", "lm": GPTJ, "adapters": tables}
    return magma.assemble(recipe).eval()


def hidden(model: Magma) -> Tensor:
    ids = torch.arange(2, 12)[None]
    layout = magma.BatchLayout(torch.arange(10)[None], torch.tensor([10]), torch.arange(10), token_ids=ids)
    with torch.no_grad():
        out: Tensor = model.lm(model.lm.embed(ids), layout)
    return out


def test_a_class_with_a_width_works_where_there_is_one() -> None:
    lm = gptj().lm
    for at in ("attention", "mlp", "block", "attn.q_proj"):
        lm.add_adapters(at, lambda: OldStyle(PartConfig(), lm.dim), name="old")
        assert [type(adapter) for adapter in lm.adapters["old"]] == [OldStyle] * 3
        lm.remove_adapters()
    for at in ("mlp", "attn.v_proj"):
        model = gptj(old={**SEQUENTIAL, "at": at})
        assert len(model.lm.adapters["old"]) == 3


def test_a_class_with_a_width_is_refused_where_there_are_two() -> None:
    magma.assemble({"name": "toy", "lm": GPTJ, "adapters": {"mlp": {"use": "add"}}})
    with pytest.raises(PartError, match=r'adapters.see: "add" at mlp.fc_in: given a site of widths 16 to 64; allowed'):
        gptj(see={"use": "add", "at": "mlp.fc_in"})


def test_a_language_model_without_a_list_of_sites_takes_what_it_took() -> None:
    model = magma.assemble({**RECIPE, "adapters": {"attention": {"use": "add"}, "mlp": {"use": "sequential"}}})
    assert [adapter.name for adapter in model.lm.all_adapters()] == ["add", "sequential"]
    for table in ({"see": {"use": "add", "at": "mlp"}}, {"mlp": {"use": "add", "blocks": [0]}}):
        with pytest.raises(PartError, match="allowed: attention, mlp, as the name of the table, in all blocks"):
            magma.assemble({**RECIPE, "adapters": table})
    bare = ToyLM(ToyLM.Config())
    made = Magma(bare, adapters={"mlp": lambda: ToyAdapter(ToyAdapter.Config(), 16)})
    assert list(made.parts()) == ["lm", "adapters.mlp"]


def test_tables_at_the_same_site_are_nested_in_their_order() -> None:
    tables = {"one": {**SEQUENTIAL, "at": "mlp"}, "two": {**SEQUENTIAL, "at": "mlp", "blocks": "last 1"}}
    model, other = gptj(**tables), gptj(**dict(reversed(tables.items())))
    for one in (model, other):
        for seed, name in enumerate(tables):
            for parameter in (p for adapter in one.lm.adapters[name] for p in adapter.parameters()):
                parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    assert not torch.allclose(hidden(model), hidden(other))
    names = {name for name in model.trained_tensors() if ".h.2." in name and "down.weight" in name}
    assert names == {f"lm.model.transformer.h.2.mlp.adapter_{name}.down.weight" for name in tables}
    assert set(model.trained_tensors()) == set(other.trained_tensors())


def test_names_of_a_recipe_with_sublayers_only_are_as_they_were() -> None:
    model = gptj(mlp=SEQUENTIAL, attention=SEQUENTIAL)
    names = {name.partition(".h.0.")[2] for name in model.trained_tensors() if ".h.0." in name}
    tensors = ("down.weight", "down.bias", "up.weight", "up.bias")
    assert names == {f"{place}.adapter.{one}" for place in ("mlp", "attn") for one in tensors}


def test_a_recipe_with_tables_is_saved_and_loaded(tmp_path: Any) -> None:
    model = gptj(low={**SEQUENTIAL, "at": "attn.*_proj", "blocks": [0, 2]}, whole={**SEQUENTIAL, "at": "block"})
    assert {path: len(parts) for path, parts in model.parts().items()} == {
        "lm": 1,
        "adapters.low": 8,
        "adapters.whole": 3,
    }
    with torch.no_grad():
        for parameter in (p for adapter in model.lm.all_adapters() for p in adapter.parameters()):
            parameter.normal_()
    magma.save(model, tmp_path / "saved")
    loaded = magma.load(tmp_path / "saved").eval()
    assert torch.equal(hidden(loaded), hidden(model))


def test_in_code_as_in_a_recipe() -> None:
    from magma_adapters.bottleneck import Sequential

    lm = gptj().lm
    table = AdapterTable(lambda site: Sequential(Sequential.Config(), site), at="mlp.fc_*", blocks="first 2")
    model = Magma(lm, adapters={"wide": table})
    assert [(site.path, site.block) for site in lm.adapter_sites["wide"]] == [
        (path, block) for block in (0, 1) for path in ("mlp.fc_in", "mlp.fc_out")
    ]
    assert list(model.parts()) == ["lm", "adapters.wide"]


def test_a_table_is_one_word_and_acts_once_at_a_site() -> None:
    lm = gptj().lm
    make = lambda: OldStyle(PartConfig(), 16)  # noqa: E731  # it is passed on
    with pytest.raises(PartError, match="allowed: a letter or underscore"):
        lm.add_adapters("attn.*", make)
    lm.add_adapters("attn.q_proj", make, name="low")
    with pytest.raises(PartError, match="adapters.low: this language model already has adapters there"):
        lm.add_adapters("attn.*_proj", make, name="low")


def test_disabled_adapters_leave_the_bare_language_model() -> None:
    tables = {
        "attention": {"use": "add"},  # it changes its input: all columns are computed
        "mlp": SEQUENTIAL,
        "low": {**SEQUENTIAL, "at": "linears"},
        "whole": {**SEQUENTIAL, "at": "block"},
    }
    model = gptj(**tables)
    with torch.no_grad():
        for parameter in (p for adapter in model.lm.all_adapters() for p in adapter.parameters()):
            parameter.normal_(std=0.1)
    prompt = [torch.arange(2, 9)]
    adapted, generated = hidden(model), model.generate_tokens(prompt, max_tokens=5)
    with model.adapters_disabled():
        bare, bare_tokens = hidden(model), model.generate_tokens(prompt, max_tokens=5)
    with model.adapters_disabled("mlp", "whole"):
        some = hidden(model)
        with model.adapters_disabled("attention", "low"):
            assert torch.equal(hidden(model), bare)
        assert torch.equal(hidden(model), some)
    assert torch.equal(hidden(model), adapted)
    assert model.generate_tokens(prompt, max_tokens=5) == generated
    assert not torch.equal(some, adapted)
    assert not torch.equal(some, bare)
    model.lm.remove_adapters()
    assert torch.equal(hidden(model), bare)
    assert model.generate_tokens(prompt, max_tokens=5) == bare_tokens
    with pytest.raises(InputError, match="given 'sea'; allowed: no adapters"), model.adapters_disabled("sea"):
        pass


def test_the_plan_says_what_a_table_means(capsys: pytest.CaptureFixture[str]) -> None:
    from magma.cli.console import print_plan

    tables = {"mlp": SEQUENTIAL, "low": {**SEQUENTIAL, "at": "attn.[qv]_proj", "blocks": "every 2"}}
    found = plan(magma.Recipe.load({"name": "toy", "lm": GPTJ, "adapters": tables}))
    parts = {part["path"]: part for part in found.to_dict()["parts"]}
    assert parts["adapters.low"]["sites"] == ("attn.q_proj", "attn.v_proj")
    assert (parts["adapters.low"]["copies"], parts["adapters.low"]["blocks"]) == (2, (1, 3))
    assert "sites" not in parts["adapters.mlp"]
    print_plan(found)
    text = capsys.readouterr().out
    assert "adapters.low: 2 adapters, in 1 of 3 blocks at attn.q_proj, attn.v_proj; 296 parameters" in text
    assert "adapters.mlp:" not in text


def test_a_recipe_that_means_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        PartError, match=r'adapters.see.at: not given, so it is "see", the name of the table; allowed: att'
    ):
        gptj(see=SEQUENTIAL)
    with pytest.raises(PartError, match=r'adapters.see.at: given "saw"; allowed: attention, mlp, block, linears, or'):
        gptj(see={**SEQUENTIAL, "at": "saw"})
    with pytest.raises(PartError, match=r"adapters.mlp.blocks: given 'first 4'; allowed: at most 3"):
        gptj(mlp={**SEQUENTIAL, "blocks": "first 4"})
