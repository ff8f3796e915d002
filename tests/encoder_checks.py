"""What an encoder of `hf` has to keep for a tower of transformers; see test_every_encoder.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import encoder_zoo as zoo
import torch
from magma_hf.encoder import HF
from magma_hf.samples import Sample
from torch import Tensor

from magma import InputError

SECONDS = 0.5


class Subject:
    """A tower of the library, and the encoder of its folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.model = zoo.build(name)
        options = {"features": "all", "seconds": SECONDS, "image_size": zoo.image_size(self.model.config)}
        if name in zoo.ONLY_INSIDE:
            self.encoder = HF.build(config=self.model.config.to_dict(), **options).eval()
            self.encoder.tower.load_state_dict(self.model.state_dict())
        else:
            self.model.save_pretrained(folder)
            self.encoder = HF.build(weights=str(folder), **options).eval()
        self.sample: Sample = self.encoder.sample
        self.items = [self.random_item(seed) for seed in (1, 2)]

    def random_item(self, seed: int) -> Any:
        """An item of random pixels, prepared if the encoder can, or with random values of the main input."""
        draw = torch.Generator().manual_seed(seed)
        main, *others = self.sample.values.values()
        values = torch.randn(main.shape, generator=draw)
        if self.encoder.modality != "image" or (main.ndim == 3 and not others):
            return (values, *others) if others else values
        try:
            return self.encoder.prepare(torch.randint(0, 256, (3, 64, 64), generator=draw, dtype=torch.uint8))
        except InputError:  # the library's default processor does not fit the tiny model
            return (values, *others) if others else values

    @torch.no_grad()
    def features(self, items: list[Any]) -> Tensor:
        """[b, n, e]."""
        return self.encoder(self.encoder.stack(items)).values

    def library_arguments(self, item: Any) -> dict[str, Any]:
        """The arguments of the library's own forward for one item."""
        values = item if isinstance(item, tuple) else (item,)
        named: Mapping[str, Tensor] = dict(zip(self.sample.values, values, strict=True))
        packed = self.sample.packed is not None and not self.sample.row_axis
        main = next(iter(named))
        given = {name: value if packed and name == main else value[None] for name, value in named.items()}
        if self.sample.mask:
            length = named[main].shape[self.sample.axis or 0]
            inverted = self.sample.mask.startswith("audio_mel")
            given[self.sample.mask] = torch.full((1, length), not inverted).to(self.sample.mask_dtype)
        return {**given, **self.sample.options}


@torch.no_grad()
def equals_the_library(subject: Subject) -> None:
    """The features are numbers of the library's own output, in its order."""
    from magma_hf.towers import part_of

    model = part_of(subject.model) if subject.encoder.source.encoder_only else subject.model
    ours = subject.features(subject.items[:1])[0]
    output = model(**subject.library_arguments(subject.items[0]))
    candidates = [x for x in _tensors(output) if x.numel() == ours.numel()]
    if not candidates:  # only results of a head
        output = model(**subject.library_arguments(subject.items[0]), output_hidden_states=True)
        candidates = [x for x in _tensors(output) if x.numel() == ours.numel()]
    assert candidates, f"no tensor of the library's output has {list(ours.shape)} values"
    assert any(_same_numbers(ours, x) for x in candidates), "features differ from the library's output"


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [x for value in values for x in _tensors(value)]


def _same_numbers(ours: Tensor, theirs: Tensor) -> bool:
    """Whether [n, e] are the numbers of a tensor whose axis of width e is the last, or the first after the rows."""
    n, e = ours.shape
    forms = [theirs.reshape(n, e)]
    if theirs.ndim > 2 and theirs.shape[1] == e:
        forms.append(theirs[0].reshape(e, n).T)
    scale = float(theirs.abs().max())  # deep towers with random weights may have large features
    return any(torch.allclose(ours, form, rtol=1e-4, atol=1e-5 * max(1.0, scale)) for form in forms)


def reads_its_input(subject: Subject) -> None:
    """Two different inputs give different features, and all are finite."""
    one, other = (subject.features([item]) for item in subject.items)
    assert bool(one.isfinite().all()), "features are not finite"
    n = subject.encoder.num_features(subject.items[0])
    assert one.shape[1:] == (n, subject.encoder.dim), f"features {list(one.shape)}, and num_features {n}"
    assert not torch.equal(one, other), "two different inputs give equal features"


def rows_are_independent(subject: Subject) -> None:
    """A batch of two equals single rows."""
    both = subject.features(subject.items)
    scale = float(both.abs().max()) + 1
    for row, item in enumerate(subject.items):
        far = float((both[row] - subject.features([item])[0]).abs().max())
        assert far <= zoo.ROUNDING.get(subject.name, 1e-4) * scale, f"a row differs by {far:.2g} in a batch"


def every_parameter_learns(subject: Subject) -> None:
    """In training, every parameter that is not frozen gets a gradient."""
    encoder = subject.encoder.train()
    if subject.name in zoo.WITHOUT_GRADIENTS:
        assert not any(p.requires_grad for p in encoder.parameters())
        return
    for parameter in encoder.parameters():
        parameter.grad = None
    encoder(encoder.stack(subject.items)).values.square().sum().backward()
    missing = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    encoder.eval()
    assert not missing, f"no gradient reaches {', '.join(missing[:3])}"
    assert any(p.grad is not None for p in encoder.parameters()), "nothing is trained"


CHECKS = (equals_the_library, reads_its_input, rows_are_independent, every_parameter_learns)
