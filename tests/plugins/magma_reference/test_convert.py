"""The authors' checkpoint format: round trips, what is refused, and that no damaged file gets through."""

from __future__ import annotations

import os
import pickle
import random
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from magma_reference.convert import read, to_file, to_folder
from magma_reference.names import Sizes, find_sizes
from safetensors.torch import load_file, save_file
from torch import Tensor

import magma
from magma import CheckpointError, PartError

GOLDEN = Path(__file__).parents[2] / "golden"
HALF = GOLDEN / "mp_rank_00_model_states.pt"
State = dict[str, Tensor]


def state_of(name: str) -> State:
    found = load_file(GOLDEN / f"{name}.safetensors")
    return {key.removeprefix("state/"): tensor for key, tensor in found.items() if key.startswith("state/")}


def same(one: State, other: State) -> bool:
    """Names, shapes, dtypes and bits."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and torch.equal(one[n], other[n]) for n in one
    )


# There and back


@pytest.mark.parametrize("name", ["no_adapters", "par_learned_attn8_ff8", "seq_attn8_ff8", "seq_layernorm_ff4"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_round_trip_is_exact(name: str, suffix: str, tmp_path: Path) -> None:
    state = state_of(name)
    save_file(state, tmp_path / "in.safetensors")
    to_folder(tmp_path / "in.safetensors", tmp_path / "model")
    to_file(tmp_path / "model", tmp_path / f"out{suffix}")
    back, _ = read(tmp_path / f"out{suffix}")
    assert same(back, state)


def test_the_half_precision_file_comes_back_with_its_top_level(tmp_path: Path) -> None:
    to_folder(HALF, tmp_path / "model")
    to_file(tmp_path / "model", tmp_path / "back.pt")
    one, other = (torch.load(path, weights_only=True) for path in (HALF, tmp_path / "back.pt"))
    assert same(one.pop("module"), other.pop("module"))
    assert one == other


def test_the_language_model_is_a_transformers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    to_folder(HALF, tmp_path / "model")
    run("export", "lm", str(tmp_path / "model"), "--out", str(tmp_path / "lm"), monkeypatch=monkeypatch)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", dtype="auto")
    state, _ = read(HALF)
    words = state["lm.transformer.wte.weight"]
    assert theirs.dtype == torch.float16
    assert torch.equal(theirs.transformer.wte.weight[: len(words)], words)
    assert torch.equal(theirs.lm_head.weight, state["lm.lm_head.weight"])
    tokens = torch.tensor([[3, 80, 5, 17]])
    model = magma.load(tmp_path / "model", dtype=torch.float32)
    model.lm.remove_adapters()
    assert torch.allclose(theirs.float()(tokens).logits[0], model.logits([tokens[0]]), atol=1e-5)


def test_a_model_that_was_trained_here_is_exported(tmp_path: Path) -> None:
    """Nothing of a reference file is at hand: the tables are computed."""
    to_folder(HALF, tmp_path / "model")
    model = magma.load(tmp_path / "model")
    model.lm._weights = None  # type: ignore[assignment]
    magma.save(model, tmp_path / "again")
    to_file(tmp_path / "again", tmp_path / "back.pt")
    assert same(
        torch.load(tmp_path / "back.pt", weights_only=True)["module"], torch.load(HALF, weights_only=True)["module"]
    )


def test_other_models_cannot_be_exported(tmp_path: Path) -> None:
    tiny = {"name": "tiny", "lm": {"use": "gptj", "weights": "bundled:tiny"}}
    magma.save(magma.assemble(tiny), tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="cannot hold this model: its inputs are none"):
        to_file(tmp_path / "tiny", tmp_path / "out.pt")
    with pytest.raises(CheckpointError, match=r"ends in \.pt or \.safetensors"):
        to_file(tmp_path / "tiny", tmp_path / "out.bin")
    assert not list(tmp_path.glob("*out*"))


# Sizes, tokenizer, messages


def test_sizes_of_the_released_layout() -> None:
    sizes = find_sizes(read(HALF)[0])
    assert (sizes.layers, sizes.dim, sizes.heads, sizes.rotary, sizes.context) == (2, 32, 4, 4, 32)
    assert (sizes.words, sizes.vocab, sizes.stages, sizes.width) == (86, 96, (1, 1, 1, 1), 8)
    assert find_sizes(read(HALF)[0], image_size=64).image_size == 64


def test_without_a_tokenizer_text_alone_is_refused(tmp_path: Path) -> None:
    assert any("reads and writes token ids alone" in line for line in to_folder(HALF, tmp_path / "model"))
    model = magma.load(tmp_path / "model", dtype=torch.float32)
    assert len(model.generate_tokens([torch.tensor([1, 2])], max_tokens=3)) == 3
    with pytest.raises(PartError, match="has no tokenizer .*only token ids"):
        model.generate(["text"])
    with pytest.raises(magma.InputError, match="token ids must be 0 to 85"):
        model.logits([torch.tensor([86])])


def test_a_tokenizer_comes_from_a_folder_with_its_image_token(tmp_path: Path) -> None:
    words(85).save_pretrained(tmp_path / "words")
    said = to_folder(HALF, tmp_path / "model", str(tmp_path / "words"))
    assert said[-1] == f"tokenizer: {tmp_path / 'words'} with <|image|>"
    model = magma.load(tmp_path / "model", dtype=torch.float32)
    assert model.lm.encode("w3 w5") == [3, 5]
    assert model.lm.control_tokens["<|image|>"] == 85
    assert model.generate(["w3 w5"], max_tokens=4)
    words(40).save_pretrained(tmp_path / "few")
    with pytest.raises(CheckpointError, match="has 41 tokens with <|image|>; allowed: 86"):
        to_folder(HALF, tmp_path / "other", str(tmp_path / "few"))
    with pytest.raises(CheckpointError, match="cannot be had: .*; allowed: a hub name, or a folder with a tokenizer"):
        to_folder(HALF, tmp_path / "other", str(tmp_path / "none"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "model", "words"]


def test_gpt2s_tokenizer_is_taken_where_it_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release's 50,258 words under a head of 50,400 rows."""
    sizes = Sizes(
        layers=1,
        dim=16,
        heads=2,
        rotary=4,
        context=32,
        vocab=50_400,
        words=50_258,
        stages=(1, 1, 1, 1),
        width=8,
        image_size=64,
        layernorm=True,
    )
    model = magma.assemble(sizes.recipe(), dtype=torch.float16)
    state = {sizes.reference(name): tensor for name, tensor in model.state_dict().items()}
    tables = {**sizes.tables(torch.float16), "bias": torch.ones(32, 32).tril().bool()[None, None]}
    torch.save(state | {f"{sizes.attention(0)}.{key}": table for key, table in tables.items()}, tmp_path / "in.pt")
    monkeypatch.setattr(magma, "hub_problem", lambda *_: "there is no network")
    *_, said = to_folder(tmp_path / "in.pt", tmp_path / "without")
    assert said.startswith(
        "tokenizer: none, gpt2 cannot be had (there is no network); the model reads and writes token"
    )
    found = magma.load(tmp_path / "without")
    assert (found.lm.num_embeddings, found.lm.vocab, found.lm.eos) == (50_258, 50_400, 50_256)
    assert found.logits([torch.tensor([50_257])]).shape == (1, 50_400)
    words(50_257).save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(magma, "hub_problem", lambda *_: None)
    *_, said = to_folder(tmp_path / "in.pt", tmp_path / "with")
    assert said == "tokenizer: gpt2 with <|image|>"
    assert magma.load(tmp_path / "with").lm.control_tokens["<|image|>"] == 50_257


def words(count: int) -> Any:
    """A tokenizer of so many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inside = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    inside.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inside)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> None:
    from magma import cli

    monkeypatch.setattr(sys, "argv", ["magma", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == status


def test_the_commands_say_what_they_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tmp_path / "model")
    run("import", "reference", str(HALF), "--out", model, monkeypatch=monkeypatch)
    said = capsys.readouterr().out.splitlines()
    assert "lm.transformer.h.*.mlp.1.adapter.0.** -> lm.model.transformer.h.*.mlp.adapter.down.**  (4 tensors)" in said
    assert any(line.startswith("image_prefix.enc.** -> inputs.image.encoder.network.**  (") for line in said)
    assert "language model: 2 layers, width 32, 4 heads, rotary 4, context 32, 86 words, head of 96" in said
    assert len(said) < 40
    run("export", "reference", model, "--out", str(tmp_path / "back.pt"), monkeypatch=monkeypatch)
    assert "lm.model.transformer.h.*.mlp.adapter.down.**" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="exists already"):
        to_folder(HALF, model)


@pytest.mark.parametrize("out", ["file/out.pt", "file/out.safetensors", "gone/out.pt"])
def test_a_place_that_cannot_be_written_is_named(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    run("export", "reference", "no-model-is-read", "--out", out, monkeypatch=monkeypatch, status=2)
    assert capsys.readouterr().err.startswith(f"magma: {out} cannot be read or written: N")
    if out.startswith("file"):
        run("import", "reference", str(HALF), "--out", out, monkeypatch=monkeypatch, status=2)
        assert capsys.readouterr().err.startswith("magma: file cannot be read or written: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_says_who_may_read_what_is_written(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        to_folder(HALF, tmp_path / "model")
        for suffix in (".pt", ".safetensors"):
            to_file(tmp_path / "model", tmp_path / f"out{suffix}")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


# What is refused


def without(name: str) -> Callable[[State], None]:
    return lambda state: [state.pop(n) for n in list(state) if n.endswith(name)] and None  # type: ignore[return-value]


def put(name: str, tensor: Tensor) -> Callable[[State], None]:
    return lambda state: state.update({name: tensor})


H0 = "lm.transformer.h.0."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("lm.transformer.h.0.strange", torch.zeros(2)), r"1 tensors are none .*: lm\.transformer\.h\.0\.strange"),
        (put("image_prefix.enc.attnpool.x", torch.zeros(2)), r"image_prefix\.enc\.attnpool\.x"),
        (without("h.1.ln_1.bias"), r"missing: lm\.transformer\.h\.1\.ln_1\.bias"),
        (without("lm_head.weight"), r"no checkpoint of the authors' code: it has no tensor lm\.lm_head\.weight"),
        (without(".sin"), r"no tensor lm\.transformer\.h\.0\.attn\.attention\.sin"),
        (put(f"{H0}attn.attention.scale_attn", torch.tensor(2.3)), "heads of width 5, which do not divide 32"),
        (put(f"{H0}attn.attention.sin", torch.ones(32, 2)), "sin differs|sin is not the table"),
        (put("transformer.0.ln_1.bias", torch.ones(32)), "transformer.0.ln_1.bias differs from lm.transformer.h.0"),
        (put("lm.lm_head.bias", torch.full((96,), torch.nan)), "lm.lm_head.bias holds NaN or infinity"),
        (put("image_prefix.proj.weight", torch.zeros(32, 200)), r"projection.weight is \[32, 200\], the model's is"),
        (put("lm.transformer.h.7.ln_1.bias", torch.ones(32)), "transformer.h.N. are "),
    ],
)
def test_what_cannot_be_explained_is_named(change: Callable[[State], None], message: str, tmp_path: Path) -> None:
    state = state_of("seq_ff4")
    change(state)
    save_file(state, tmp_path / "in.safetensors")
    with pytest.raises(CheckpointError, match=message):
        to_folder(tmp_path / "in.safetensors", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".*"))


class _Runs:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("was_here",))


def test_a_transposed_weight_is_taken(tmp_path: Path) -> None:
    """Dense, but in another order than safetensors writes."""
    state = state_of("seq_ff4")
    turned = {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in state.items()}
    assert not turned["lm.lm_head.weight"].is_contiguous()
    torch.save(turned, tmp_path / "in.pt")
    to_folder(tmp_path / "in.pt", tmp_path / "model")
    to_file(tmp_path / "model", tmp_path / "out.safetensors")
    assert same(read(tmp_path / "out.safetensors")[0], state)


@pytest.mark.parametrize("level", ["top", "module", "tensor"])
def test_a_pickle_that_would_run_code_is_refused(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad: Any = _Runs()
    torch.save({"top": bad, "module": {"module": bad}, "tensor": {"module": {"lm": bad}}}[level], "bad.pt")
    with pytest.raises(CheckpointError, match=r"refused: .*asks for .*mkdir.*nothing of it was executed"):
        to_folder("bad.pt", "model")
    Path("plain.pt").write_bytes(pickle.dumps(bad))
    with pytest.raises(CheckpointError, match="no archive of torch.save"):
        to_folder("plain.pt", "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pt", "plain.pt"]


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"module": {"a": 3}}, tmp_path / "number.pt")
    torch.save({"a": torch.zeros(2).expand(3, 2)}, tmp_path / "view.pt")
    with zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"0" * 1000)
    for name, message in {
        "list.pt": "holds a list; allowed: a dictionary of tensors",
        "number.pt": "'a' is a int; allowed: tensors by name",
        "view.pt": "a is not a plain dense tensor",
        "small.pt": "compressed archive",
        "none.pt": "does not exist",
        "folder": "is a folder",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            to_folder(tmp_path / name, tmp_path / "model")


def mutated(original: bytes, draw: random.Random) -> bytes:
    """Bits flipped, bytes overwritten, a piece cut out, doubled or moved, or the end cut off."""
    data = bytearray(original)
    at, size = draw.randrange(len(data)), draw.choice([1, 8, 64, 4096])
    kind = draw.randrange(6)
    if kind == 0:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        data[at : at + size] = draw.randbytes(size)
    elif kind == 2:
        del data[at : at + size]
    elif kind == 3:
        data[at:at] = data[at : at + size]
    elif kind == 4:
        del data[at:]
    else:
        head = draw.randrange(2048)  # where pickles and headers are
        data[head] = draw.randrange(256)
    return bytes(data)


def test_no_damaged_file_gets_through(tmp_path: Path) -> None:
    """Refused, or so little damaged that every tensor is still what it was (an archive has bytes that say nothing)."""
    intact, _ = read(HALF)
    original, draw = HALF.read_bytes(), random.Random(0)
    refused = 0
    for i in range(300):
        (tmp_path / "damaged.pt").write_bytes(mutated(original, draw))
        try:
            found, _ = read(tmp_path / "damaged.pt")
        except CheckpointError:
            refused += 1
            continue
        assert same(found, intact), f"mutation {i} was read, and is another model"
    assert refused > 280


def test_an_archive_whose_sums_are_right_is_checked_too(tmp_path: Path) -> None:
    """Entries cut and pickles changed before the archive was written: a tensor may not read what is not its own."""
    intact, _ = read(HALF)
    draw = random.Random(3)
    with zipfile.ZipFile(HALF) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    numbers = [name for name, data in entries.items() if "/data/" in name and len(data) > 1]
    (pickled,) = [name for name in entries if name.endswith("data.pkl")]
    for i in range(200):
        changed = dict(entries)
        victim = pickled if i % 2 else draw.choice(numbers)
        data = entries[victim]
        if victim == pickled:
            at = draw.randrange(len(data))
            changed[victim] = data[:at] + draw.randbytes(1) + data[at + draw.choice([0, 1, 8]) :]
        else:
            changed[victim] = data[: draw.randrange(len(data))]
        with zipfile.ZipFile(tmp_path / "changed.pt", "w") as archive:
            for name, data in changed.items():
                archive.writestr(name, data)
        try:
            found, _ = read(tmp_path / "changed.pt")
            assert victim == pickled, f"mutation {i}: {victim} is cut short, and was read"
            if not same(found, intact):
                to_folder(tmp_path / "changed.pt", tmp_path / "model")
                pytest.fail(f"mutation {i} was imported, and is another model")
        except CheckpointError:
            continue


def test_a_damaged_plain_state_dict_is_refused_or_misses_nothing(tmp_path: Path) -> None:
    """safetensors has no sums over its data: its header and its length are what can be checked."""
    save_file(state_of("seq_ff4"), tmp_path / "in.safetensors")
    original, draw = (tmp_path / "in.safetensors").read_bytes(), random.Random(1)
    header = 8 + int.from_bytes(original[:8], "little")
    for _ in range(60):
        data = bytearray(original)
        data[draw.randrange(header)] ^= 1 << draw.randrange(8)
        (tmp_path / "damaged.safetensors").write_bytes(
            data if draw.random() < 0.7 else original[: -draw.randrange(1, 999)]
        )
        with pytest.raises(CheckpointError):
            to_folder(tmp_path / "damaged.safetensors", tmp_path / "model")


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    to_folder(HALF, tmp_path / "model")
    draw = random.Random(2)
    for file in ("trained.safetensors", "lm/model.safetensors"):
        path = tmp_path / "model" / file
        original = path.read_bytes()
        for _ in range(20):
            data = bytearray(original)
            data[draw.randrange(len(data) - 1)] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
            with pytest.raises(magma.MagmaError):
                magma.load(tmp_path / "model")
        path.write_bytes(original)
    config = tmp_path / "model/lm/config.json"
    text = config.read_text()
    config.write_text(text.replace('"layer_norm_epsilon": 1e-05', '"layer_norm_epsilon": 1e-02'))
    assert config.read_text() != text
    with pytest.raises(CheckpointError, match=r"lm/config\.json is not what was written"):
        magma.load(tmp_path / "model")
    config.write_text(text)
    assert magma.load(tmp_path / "model").dtype == torch.float16


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    to_folder(HALF, tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "moved")
    assert 'weights = "lm"' in (tmp_path / "moved/recipe.toml").read_text()
    assert magma.load(tmp_path / "moved").dtype == torch.float16


# Size


MEASURE = """
import resource, sys
import transformers, magma_reference.convert as convert
from magma_lms.gptj import GPTJ
import open_clip
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
convert.to_folder(sys.argv[1], sys.argv[2])
print(peak() - before)
"""


def test_an_import_needs_little_more_than_the_file(tmp_path: Path) -> None:
    """Its mapped pages and a shard, not copies of it."""
    sizes = Sizes(
        layers=12,
        dim=1024,
        heads=16,
        rotary=32,
        context=64,
        vocab=24_000,
        words=23_900,
        stages=(1, 1, 1, 1),
        width=8,
        image_size=64,
        layernorm=True,
    )
    model = magma.assemble(sizes.recipe(), device="meta", dtype=torch.float16)
    state = {sizes.reference(n): torch.full(t.shape, 0.01).to(t.dtype) for n, t in model.state_dict().items()}
    tables = {**sizes.tables(torch.float16), "bias": torch.ones(64, 64).tril().bool()[None, None]}
    state |= {f"{sizes.attention(layer)}.{key}": t for layer in range(12) for key, t in tables.items()}
    torch.save({"module": state}, tmp_path / "big.pt")
    size = (tmp_path / "big.pt").stat().st_size
    assert size > 400e6
    said = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "big.pt", tmp_path / "model"], check=True, capture_output=True
    )
    assert int(said.stdout.splitlines()[-1]) < size + 600e6
    assert len(list((tmp_path / "model" / "lm").glob("*.safetensors"))) >= 1
