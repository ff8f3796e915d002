"""A folder in lmms-eval: our class against a fake of what it uses, and the real one where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lmms_folders import IMAGE, SOUND, picture, write

import magma
from magma import InputError, Magma, PluginError

ROOT = Path(__file__).parents[3]


def wave(pitch: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(4000) / 8000)).astype(np.float32)


# A fake of lmms-eval


class FakeLmms:
    """lmms_eval.api.model.lmms, as far as it is used."""

    def __init__(self) -> None:
        self.rank = 0
        self.task_dict: dict[str, Any] = {}


@dataclass(frozen=True)
class FakeManifest:
    model_id: str
    simple_class_path: str


@dataclass
class FakeResult:
    text: Any


@dataclass
class FakeInstance:
    args: tuple[Any, ...]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """magma_harness.lmms, imported where lmms-eval is the fake."""
    contents: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"GenerationResult": FakeResult},
        "lmms_eval.api.model": {"lmms": FakeLmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": FakeManifest},
    }
    for name, names in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "magma_harness.lmms", raising=False)
    yield importlib.import_module("magma_harness.lmms")
    del sys.modules["magma_harness.lmms"]


DOCUMENTS: list[dict[str, Any]] = [
    {"visual": [picture(0)], "text": "A picture of", "target": " a seven"},
    {"visual": [[picture(1)], picture(2)], "text": "What do the two images show?", "target": " both of them"},
    {"visual": [{"array": wave(440).tolist(), "sampling_rate": 8000}], "text": "It sounds like", "target": " one"},
    {"visual": None, "text": "Only text", "target": " a dog on the street"},
    {"visual": [picture(0), (wave(880), 8000)], "text": "", "target": " x"},
]

PROMPTS: list[list[Any]] = [
    [picture(0), "A picture of"],
    [picture(1), picture(2), "What do the two images show?"],
    [(wave(440), 8000), "It sounds like"],
    ["Only text"],
    [picture(0), (wave(880), 8000)],
]

GREEDY = {"until": ["\n\n"], "max_new_tokens": 8, "do_sample": False, "temperature": 0.0}


def visual(document: Any) -> Any:
    return document["visual"]


def loaded(harness: Any, folder: Path, **how: Any) -> Any:
    found = harness.MagmaFolder(str(folder), **how)
    found.task_dict = {"task": {"test": DOCUMENTS}}
    return found


def asking(second: Any, number: int, text: str | None = None) -> FakeInstance:
    text = DOCUMENTS[number]["text"] if text is None else text
    return FakeInstance((text, second, visual, number, "task", "test"))


@pytest.mark.parametrize("batch_size", [1, "2", 8])
def test_answers_are_those_of_the_folder(harness: Any, folder: Path, model: Magma, batch_size: int | str) -> None:
    expected = [model.generate(prompt, max_tokens=8, stop="\n\n") for prompt in PROMPTS]
    assert len(set(expected)) == 5
    lmms = loaded(harness, folder, batch_size=batch_size, device="cpu", max_batch_size=None)
    assert lmms.generate_until([asking(dict(GREEDY), i) for i in range(5)]) == expected
    assert lmms.device == torch.device("cpu")


def test_each_request_has_its_own_options_and_place(harness: Any, folder: Path, model: Magma) -> None:
    stop = model.generate(PROMPTS[0], max_tokens=8)[3:5]
    options = [{**GREEDY, "until": stop}, {**GREEDY, "max_new_tokens": 3}, {**GREEDY, "until": None}, GREEDY]
    numbers = [0, 1, 0, 3, 2]
    requests = [asking(options[i % 4], number) for i, number in enumerate(numbers)]
    expected = [
        model.generate(PROMPTS[0], max_tokens=8, stop=stop),
        model.generate(PROMPTS[1], max_tokens=3, stop="\n\n"),
        model.generate(PROMPTS[0], max_tokens=8),
        model.generate(PROMPTS[3], max_tokens=8, stop="\n\n"),
        model.generate(PROMPTS[2], max_tokens=8, stop=stop),
    ]
    assert loaded(harness, folder, batch_size=4).generate_until(requests) == expected


@pytest.mark.parametrize(
    ("template", "wrap"),
    [
        ("{media}Q: {text} A:", lambda media, text: [*media, f"Q: {text} A:"]),
        ("{text}{media}", lambda media, text: [text, *media]),
        ("'Look, {media}\\nwhat? {text} '", lambda media, text: ["Look, ", *media, f"\nwhat? {text} "]),
    ],
)
def test_the_template_is_the_prompt(harness: Any, folder: Path, model: Magma, template: str, wrap: Any) -> None:
    prompts = [wrap(prompt[:-1], prompt[-1]) for prompt in PROMPTS[:3]]
    expected = [model.generate(prompt, max_tokens=8, stop="\n\n") for prompt in prompts]
    lmms = loaded(harness, folder, template=template, batch_size=3)
    assert lmms.generate_until([asking(GREEDY, i) for i in range(3)]) == expected
    text_alone = "".join(wrap([], "Only text"))
    assert lmms.generate_until([asking(GREEDY, 3)]) == [model.generate([text_alone], max_tokens=8, stop="\n\n")]


def test_sampling_is_that_of_transformers_options(harness: Any, folder: Path, model: Magma) -> None:
    lmms = loaded(harness, folder, max_new_tokens=77)

    def read(**options: Any) -> tuple[float, float, int]:
        found = lmms._make_decoding(options)
        return found.temperature, found.top_p, found.top_k

    greedy = (0.0, 1.0, 0)
    assert read() == read(do_sample=False, temperature=0.7, top_p=0.9) == greedy
    assert read(temperature=0, top_p=0, num_beams=1) == read(do_sample=True, temperature=0.0) == greedy
    assert read(do_sample=True) == (1.0, 1.0, 0)
    assert read(temperature=0.7, top_p=0.9, top_k=5) == (0.7, 0.9, 5)
    assert read(do_sample=True, temperature=None, top_p=0.5) == (1.0, 0.5, 0)
    assert lmms._make_decoding({}).max_tokens == 77
    assert lmms._make_decoding({"until": ["", "a"]}).stop == ("a",)
    torch.manual_seed(3)
    expected = model.generate(PROMPTS[:2], max_tokens=8, temperature=1.5, top_p=0.9)
    torch.manual_seed(3)
    options = {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.9}
    assert loaded(harness, folder, batch_size=2).generate_until([asking(options, i) for i in range(2)]) == expected


def by_logits(model: Magma, prompt: list[Any], text: str) -> tuple[float, bool]:
    """Token by token."""
    ids = model.lm.encode(text)
    logits = model.logits([*prompt, text])[-len(ids) - 1 : -1].float()
    chances = [float(row.log_softmax(-1)[token]) for row, token in zip(logits, ids, strict=True)]
    return sum(chances), all(int(row.argmax()) == token for row, token in zip(logits, ids, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_likelihoods_are_those_of_the_logits(harness: Any, folder: Path, model: Magma, batch_size: int) -> None:
    lmms = loaded(harness, folder, batch_size=batch_size)
    targets = lmms.loglikelihood([asking(lambda document: document["target"], i) for i in range(5)])
    for prompt, document, found in zip(PROMPTS, DOCUMENTS, targets, strict=True):
        total, greedy = found.text
        expected = by_logits(model, prompt, document["target"])
        assert total == pytest.approx(expected[0], abs=1e-3)
        assert greedy == expected[1]


def test_choices_get_a_loss_for_lmms_eval_takes_the_least(harness: Any, folder: Path, model: Magma) -> None:
    said = model.generate(PROMPTS[0], max_tokens=2)
    choices = [" a dog", said, " zebra crossing"]
    expected = [by_logits(model, PROMPTS[0], choice) for choice in choices]
    lmms = loaded(harness, folder, batch_size=2)
    found = [result.text for result in lmms.loglikelihood([asking(choice, 0) for choice in choices])]
    assert [total for total, _ in found] == pytest.approx([-total for total, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [False, True, False]
    (alone,) = lmms.loglikelihood([FakeInstance(("", " a dog"))])  # behind nothing: for mutual information
    total, greedy = by_logits(model, [torch.tensor([model.lm.eos])], " a dog")
    assert alone.text == (pytest.approx(-total, abs=1e-3), greedy)


def test_media_come_in_every_form_that_datasets_has(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AudioDecoder:
        def get_all_samples(self) -> Any:
            return types.SimpleNamespace(data=torch.from_numpy(wave(440))[None], sample_rate=8000)

    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    decoders = types.ModuleType("torchcodec.decoders")
    decoders.AudioDecoder = AudioDecoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    soundfile.write(tmp_path / "tone.wav", wave(440), 8000, subtype="FLOAT")
    file = tmp_path / "tone.wav"
    kept = io.BytesIO()
    picture(0).save(kept, "PNG")
    sounds = [
        {"array": wave(440), "sampling_rate": 8000},
        {"path": str(file), "bytes": None},
        AudioDecoder(),
        str(file),
    ]
    encoder = magma.assemble({"name": "s", "lm": {"use": "gptj", "weights": "bundled:tiny"}, "inputs": {"s": SOUND}})
    prepare = encoder.input_modules()["s"].encoder.prepare
    for (medium,) in map(harness._flatten_media, [[sound] for sound in sounds]):
        assert torch.allclose(prepare(medium), prepare((wave(440), 8000)), atol=1e-4)
    assert harness._flatten_media({"path": None, "bytes": kept.getvalue()}) == [kept.getvalue()]
    assert harness._flatten_media([[None], [], None]) == []
    odd = {"what": "else"}
    assert harness._flatten_media([[odd]]) == [odd]


def test_what_a_folder_cannot_take_is_said_with_its_document(harness: Any, folder: Path, tmp_path: Path) -> None:
    deaf = loaded(harness, write(tmp_path / "deaf", image=IMAGE), batch_size=2)
    said = r"task document 2: no input accepts a value of type tuple; inputs: image"
    with pytest.raises(InputError, match=said):
        deaf.generate_until([asking(GREEDY, 1), asking(GREEDY, 2)])
    with pytest.raises(InputError, match=said):
        deaf.loglikelihood([asking(" a", 2)])
    both = loaded(harness, folder, batch_size=2)
    DOCUMENTS.append({"visual": ["/none.png"], "text": "", "target": ""})
    try:
        with pytest.raises(InputError, match=r"task document 0, task document 5: prompt 1: image: /none.png"):
            both.generate_until([asking(GREEDY, 0), asking(GREEDY, 5)])
    finally:
        DOCUMENTS.pop()
    with pytest.raises(InputError, match=r"task document 0: num_beams is 4; allowed: 1"):
        both.generate_until([asking({**GREEDY, "num_beams": 4}, 0)])
    with pytest.raises(InputError, match=r"task document 3: the prompt followed by ' word word.* needs \d+ positions"):
        both.loglikelihood([asking(" word" * 5000, 3)])
    with pytest.raises(InputError, match=r"task document 0: it needs several rounds"):
        both.generate_until_multi_round([FakeInstance(("a", GREEDY, visual, visual, 0, "task", "test"))])


def test_options_that_do_nothing_are_named_once(harness: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lmms = loaded(harness, folder)
    lmms.generate_until([asking({**GREEDY, "image_aspect_ratio": "pad"}, 0)] * 2)
    assert [record.getMessage().split(" is")[0] for record in caplog.records] == [
        'generation option "image_aspect_ratio"'
    ]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"batch_size": "auto"}, "batch_size is 'auto'; allowed: a whole number of 1 or more"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"template": "{text}"}, 'template is \'{text}\'; allowed: text with "{media}" and "{text}" in it, once each'),
        ({"template": "{media}{text}{text}"}, "once each"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(harness: Any, folder: Path, how: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        harness.MagmaFolder(str(folder), **how)


def test_the_entry_point_names_a_class_that_is_there(harness: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["entry-points"]["lmms_eval.models"]["magma"].split(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert manifest == FakeManifest("magma", f"{harness.__name__}.{harness.MagmaFolder.__name__}")
    assert not any("lmms" in dependency for dependency in project["dependencies"])


def test_without_lmms_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import magma_harness

    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    for name in [name for name in sys.modules if name.startswith("lmms_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "magma_harness.lmms", raising=False)
    said = r"needs lmms-eval 0.7 or newer.*pip install 'magma-multimodal\[harness\]'"
    with pytest.raises(PluginError, match=said):
        magma_harness.manifest()
    with pytest.raises(PluginError, match=said):
        importlib.import_module("magma_harness.lmms")


def test_the_package_is_light() -> None:
    code = "import sys, magma_harness; print({'torch', 'numpy', 'lmms_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
