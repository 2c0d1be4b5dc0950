"""Tiny parts with random weights: large enough to go wrong, small enough for a fast test.

And the families of generators: what all of them must pass is written once, for `families`. A new
family joins by an entry in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from var.condition import Condition
from var.models.flowar import FlowAR
from var.models.mvar import MVAR
from var.models.nextscale import NextScale
from var.models.raster import Raster
from var.models.var import VAR
from var.sampling import Sampling
from var.schedule import Schedule
from var.tokenizers.continuous import KL
from var.tokenizers.quantizer import Quantizer
from var.tokenizers.residual import MultiScaleQuantizer

LADDER = (1, 2, 3, 4)
SCHEDULE = Schedule.scales(LADDER)
VOCABULARY, CHANNELS, CLASSES = 32, 6, 5
WIDTH = 32
TEXT = (7, 10)  # features of a text, and their channels


def shaken(module: nn.Module, scale: float, seed: int = 0) -> nn.Module:
    """Give a module loud random weights, biases included: a fresh one barely reacts to anything."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * scale)
    return module


def model(kind: type[NextScale] = VAR, **changes: Any) -> NextScale:
    """Return a transformer in evaluation mode."""
    settings = {
        "depth": 2,
        "width": 32,
        "heads": 4,
        "vocabulary": VOCABULARY,
        "channels": CHANNELS,
        "classes": CLASSES,
        "ladder": LADDER,
    }
    made = shaken(kind(**{**settings, **changes}), scale=0.25).eval()
    assert isinstance(made, kind)
    return made


def tokenizer(scales: int = len(LADDER)) -> MultiScaleQuantizer:
    """Return a quantizer: all of a tokenizer that transformers get to see."""
    made = MultiScaleQuantizer(vocabulary=VOCABULARY, channels=CHANNELS, scales=scales)
    shaken(made, scale=0.4, seed=1)
    assert isinstance(made, MultiScaleQuantizer)
    return made.eval()


def flowar(**changes: Any) -> FlowAR:
    """Return a transformer with a flow for a head, in evaluation mode."""
    settings = {
        "channels": CHANNELS,
        "classes": CLASSES,
        "ladder": LADDER,
        "width": 32,
        "encoder_depth": 1,
        "decoder_depth": 1,
        "heads": 2,
        "head_depth": 1,
        "head_width": 16,
        "head_heads": 2,
    }
    made = shaken(FlowAR(**{**settings, **changes}), scale=0.25).eval()
    assert isinstance(made, FlowAR)
    return made


def latents(scales: int = len(LADDER)) -> KL:
    """Return a continuous tokenizer without its decoder; any number of scales will do."""
    vae = {"block_out_channels": [4], "norm_num_groups": 2, "latent_channels": CHANNELS}
    return KL(vae=vae, decoder=False).eval()


def raster(**changes: Any) -> Raster:
    """Return a next-token transformer, in evaluation mode."""
    settings = {
        "vocabulary": VOCABULARY,
        "grid": 3,
        "depth": 2,
        "width": WIDTH,
        "heads": 2,
        "hidden": 40,
        "classes": CLASSES,
    }
    made = shaken(Raster(**{**settings, **changes}), scale=0.25).eval()
    assert isinstance(made, Raster)
    return made


def worded(**changes: Any) -> Raster:
    """Return a next-token transformer that reads texts, in evaluation mode."""
    length, channels = TEXT
    made = raster(**{"classes": None, "text": channels, "text_length": length, **changes})
    null = made.source.null
    null.copy_(torch.randn(null.shape, generator=torch.Generator().manual_seed(5)))
    return made


def flat(scales: int = 1) -> Quantizer:
    """Return a quantizer of a single grid; any number of scales will do."""
    made = Quantizer(vocabulary=VOCABULARY, channels=CHANNELS)
    shaken(made, scale=0.4, seed=1)
    assert isinstance(made, Quantizer)
    return made.eval()


def described(labels: Tensor) -> Condition:
    """Return the condition of one text for each label: valid features come last, -1 is no text."""
    rng = torch.Generator().manual_seed(6)
    texts = torch.randn(CLASSES + 1, *TEXT, generator=rng)
    count = torch.tensor([4, TEXT[0], 1, 0, 6, 0])
    valid = torch.arange(TEXT[0]) < count[:, None]
    condition = Condition.of_text(texts[labels], valid[labels])
    return replace(condition, labels=labels.clamp(max=0))


def ids(rows: int, length: int, seed: int = 3) -> Tensor:
    """Return tokens (B, L) of `tokenizer` and `flat`."""
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def vectors(rows: int, length: int, seed: int = 3) -> Tensor:
    """Return latent vectors (B, L, C): tokens of `latents`, and what a canvas might show."""
    return torch.randn(rows, length, CHANNELS, generator=torch.Generator().manual_seed(seed))


class Family(NamedTuple):
    """Generators of a kind, with tokens of a kind.

    Attributes:
        model: makes a backbone of two layers and width 32, with changed keywords.
        tokenizer: makes all of a tokenizer that backbones get to see, for a number of scales.
        tokens: draws tokens (B, L, ...) at random: of so many rows, of such a length.
        samplings: how tokens may be drawn; the first is plain, the second guided.
        larger: keywords of a model of three layers and width 48.
        elsewhere: keywords of a model of another schedule.
        shown: draws what a canvas might show (B, L, ...) at random, likewise.
        condition: of labels (B,).
        recurrent: its models remember states instead of keys.
    """

    model: Callable[..., Any]
    tokenizer: Callable[..., Any]
    tokens: Callable[[int, int], Tensor]
    samplings: tuple[Sampling, ...]
    larger: dict[str, Any]
    elsewhere: dict[str, Any]
    shown: Callable[..., Tensor] = vectors
    condition: Callable[[Tensor], Condition] = Condition
    recurrent: bool = False

    @property
    def plain(self) -> Sampling:
        """Neither guided nor filtered."""
        return self.samplings[0]

    @property
    def guided(self) -> Sampling:
        """Guided, and whatever else there is."""
        return self.samplings[1]

    @property
    def schedule(self) -> Schedule:
        """What its models decide."""
        return self.model().schedule

    def features(self, model: Any, x: Tensor, labels: list[int]) -> Tensor:
        """Return the features (B, L, D) of all that a model can read."""
        return model(x, model.schedule[:], self.condition(torch.tensor(labels)))

    def smooth(self, rows: int = 2) -> tuple[Any, Tensor]:
        """Return a model, and what it reads (B, L, C) such that gradients can be asked of it.

        Models that read ids are given what they would look them up as.
        """
        model = self.model()
        x = self.shown(rows, model.schedule.starts[-1])
        if not x.is_floating_point():
            x, model.codes = model.codes(x).detach(), nn.Identity()
        return model, x.requires_grad_()

    def held(self, rows: int, groups: int, *, layers: int = 2, width: int = WIDTH) -> int:
        """Return the bytes of an exact cache in float32 with room for so many groups."""
        if self.recurrent:  # the tail of a convolution, and the state behind it
            channels = 2 * width
            return layers * rows * (3 * (channels + 2 * 64) + channels * 64) * 4
        return layers * rows * 2 * self.schedule.starts[groups] * width * 4

    def changed(self, **changes: Any) -> Family:
        """Return the family with other keywords of its models."""
        return self._replace(model=partial(self.model, **changes))


_VAR = Family(
    model,
    tokenizer,
    ids,
    (
        Sampling(),
        Sampling(guidance=2.0, top_k=9, top_p=0.9),
        Sampling(guidance=(0.5, 3.0), temperature=0.8, smooth=True),
        Sampling(guidance=(3.0, 2.0), guided_groups=2, top_k=20),
    ),
    larger={"depth": 3, "width": 48},
    elsewhere={"ladder": (1, 2, 4)},
)
_FLOWAR = Family(
    flowar,
    latents,
    vectors,
    (
        Sampling(steps=3),
        Sampling(guidance=2.0, steps=3, interval=0.8),
        Sampling(guidance=(0.5, 3.0), temperature=0.8, steps=2, solver="heun"),
        Sampling(guidance=(3.0, 2.0), guided_groups=2, steps=2),
    ),
    larger={"encoder_depth": 2, "width": 48},
    elsewhere={"ladder": (1, 2, 4)},
)
_RASTER = Family(
    raster,
    flat,
    ids,
    (
        Sampling(),
        Sampling(guidance=2.0, top_k=9, top_p=0.9),
        Sampling(guidance=(0.5, 3.0), temperature=0.8, temper_last=True, top_p=0.7),
        Sampling(guidance=(3.0, 2.0), guided_groups=2, top_k=20),
    ),
    larger={"depth": 3, "width": 48},
    elsewhere={"grid": 2},
    shown=ids,
)
_MVAR = _VAR._replace(model=partial(model, MVAR), larger={"depth": 3, "width": 64}, recurrent=True)
# Those that decide scale after scale, for what has to do with scales.
LADDERED = {
    "var": _VAR,
    "mvar": _MVAR,
    "flowar": _FLOWAR,
    "flowar-cross": _FLOWAR.changed(cross=True, head_depth=2),
}
FAMILIES = {**LADDERED, "raster": _RASTER}
VARIANTS = {
    **FAMILIES,
    "var-fixed": _VAR.changed(l2_norm=False),
    "var-shared": _VAR.changed(shared_adaln=True),
    "mvar-fixed": _MVAR.changed(l2_norm=False, width=64),
    "mvar-shared": _MVAR.changed(shared_adaln=True),
    "mvar-rectangles": _MVAR.changed(ladder=[(2, 3), 4, (5, 4)], mlp_ratio=1.5),
    "var-rectangles": _VAR.changed(ladder=[(2, 3), 4, (5, 4)], mlp_ratio=1.5),
    "flowar-rectangles": _FLOWAR.changed(ladder=[(2, 3), 4, (5, 4)], decoder_heads=4),
    "raster-grouped": _RASTER.changed(heads=4, kv_heads=2),
    "raster-rectangle": _RASTER.changed(grid=(2, 3), hidden=None, norm_eps=1e-3),
    "raster-text": _RASTER._replace(model=worded, condition=described),
}


def _each(found: dict[str, Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", found.values(), ids=found)


def _keyed(found: dict[str, Family]) -> dict[str, Family]:
    return {name: family for name, family in found.items() if not family.recurrent}


families, variants = _each(FAMILIES), _each(VARIANTS)
# Those that remember keys: parts of them can be forgotten, positions or, scale by scale, shares.
rewinding, compressible = _each(_keyed(VARIANTS)), _each(_keyed(LADDERED))
samplings = pytest.mark.parametrize(
    ("family", "sampling"),
    [
        pytest.param(family, sampling, id=f"{name}-{i}")
        for name, family in FAMILIES.items()
        for i, sampling in enumerate(family.samplings)
    ],
)


def features(model: Any, x: Tensor, labels: list[int]) -> Tensor:
    """Return the features (B, L, D) of all that a model can read."""
    return model(x, model.schedule[:], Condition(torch.tensor(labels)))


def close(ours: Any, theirs: Any, atol: float = 1e-5) -> None:
    """Check that vectors are equal but for the order of sums, and that ids are equal."""
    torch.testing.assert_close(ours, theirs, rtol=10 * atol, atol=atol)


def same(ours: Any, theirs: Any) -> None:
    """Check that draws, tokens or latents, are the same: many steps add to the rounding."""
    close(ours, theirs, atol=1e-4)
