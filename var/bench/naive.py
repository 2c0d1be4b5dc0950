"""The naive row: the same steps written the obvious way, to measure what the product adds.

Keys and values grow by concatenation, the modulation is computed at every scale, the head sees all
rows, all logits are sorted for each token, everything is contiguous and out of place, half
precision is autocast over float32 weights. Built from the product's pieces, new modules around the
same weights, so that no fast route of a loaded run is left in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var import recipe
from var.cache.base import Cache, CacheKind, Plain
from var.cache.dense import DenseMemory
from var.errors import UserError
from var.heads.categorical import Categorical, CategoricalPrediction, SmoothPrediction
from var.models.var import VAR
from var.random import Rng
from var.sampling import Condition, Guide, Sampling
from var.schedule import Span
from var.store import Run
from var.tokenizers.around import Wrapped
from var.tokenizers.autoencoder import ResBlock, Upsample, zero_one
from var.tokenizers.multiscale import MultiScaleVQ
from var.tokenizers.tokenizer import Canvas


def naive(run: Run, dtype: torch.dtype = torch.float32) -> Run:
    """Return a run that computes what another one does, the obvious way.

    Args:
        run: in float32; its weights are shared where their layout allows.
        dtype: what products are computed in; the weights stay in float32.

    Raises:
        UserError: the run is none of VAR's.
    """
    if not (isinstance(run.model, VAR) and isinstance(run.tokenizer, MultiScaleVQ)):
        raise UserError("a naive row can be built of VAR models only: say naive=false")
    assert run.recipe.backbone is not None
    model = cast(VAR, _plain(run.model, run.recipe.backbone))
    tokenizer = cast(MultiScaleVQ, _plain(run.tokenizer, run.recipe.tokenizer))
    return Run(run.recipe, NaiveTokenizer(tokenizer, dtype), NaiveBackbone(model, dtype))


def _plain(module: nn.Module, spec: recipe.Spec) -> nn.Module:
    """Return a new module with the weights of another one, contiguous, on plain routes only."""
    plain = recipe.build(spec, "naive row")
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    plain.load_state_dict(state, assign=True)
    for part in list(plain.modules()):
        for name, child in part.named_children():
            if isinstance(child, Upsample):
                setattr(part, name, NaiveUpsample(child.conv))
            elif isinstance(child, ResBlock):
                setattr(part, name, NaiveBlock(child))
    return plain.eval()


class NaiveUpsample(nn.Module):
    """Double the grid, then convolve the large one."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class NaiveBlock(nn.Module):
    """A residual block that keeps its intermediate results."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        h = block.conv1(F.silu(block.norm1(x)))
        h = block.conv2(F.silu(block.norm2(h)))
        return block.nin_shortcut(x) + h


class NaiveMemory(DenseMemory):
    """Concatenates keys and values, and computes everything else again."""

    def once(self, make: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        """Return `make(condition)`."""
        return make(condition)


class NaiveCache(Plain):
    """A cache of naive memories; the arguments are those of `Dense`."""

    def __init__(self, layers: int, groups: int | None = None) -> None:
        super().__init__([NaiveMemory() for _ in range(layers)])


class NaivePrediction(CategoricalPrediction):
    """A prediction that sorts all logits for each filter."""

    def shaped(self, sampling: Sampling) -> CategoricalPrediction:
        """Return the prediction after temperature, top-k and top-p of a single group."""
        temperature = cast(float, sampling.temperature)
        before, after = (1.0, temperature) if sampling.temper_last else (temperature, 1.0)
        logits = self.logits / before
        if sampling.top_k:
            logits = _top_k(logits, cast(int, sampling.top_k))
        if sampling.top_p:
            logits = _top_p(logits, cast(float, sampling.top_p))
        kind = SmoothPrediction if sampling.smooth else CategoricalPrediction
        return kind(logits / after, self.progress)


def _top_k(logits: Tensor, k: int) -> Tensor:
    values = logits.sort(dim=-1, descending=True).values
    least = values[..., min(k, values.shape[-1]) - 1, None]
    return logits.masked_fill(logits < least, -torch.inf)


def _top_p(logits: Tensor, p: float) -> Tensor:
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = values.softmax(dim=-1).flip(-1).cumsum(dim=-1).flip(-1)  # of a code and all below
    out = mass <= 1 - p
    out[..., 0] = False
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


class NaiveHead(nn.Module):
    """A head that predicts from all rows, whatever they weigh."""

    def __init__(self, head: Categorical, dtype: torch.dtype) -> None:
        super().__init__()
        self.head, self.dtype, self.heeds = head, dtype, head.heeds

    def forward(self, h: Tensor, span: Span, guide: Guide) -> NaivePrediction:
        """Return the guided distributions of features (R, L, D)."""
        with _autocast(h, self.dtype):
            logits = self.head.linear(h).float()
        return NaivePrediction(guide(logits), guide.progress)

    def loss(self, h: Tensor, tokens: Tensor, span: Span, rng: Rng) -> Tensor:
        """Return the head's loss."""
        return self.head.loss(h, tokens, span, rng)


class NaiveBackbone(nn.Module):
    """A backbone that casts its weights at each use, and has a naive head and cache."""

    def __init__(self, model: VAR, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.head = NaiveHead(model.head, dtype)

    def forward(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return features for the head, (R, L, D)."""
        with _autocast(x, self.dtype):
            return self.model(x, span, condition, cache)

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache, naive by default."""
        return self.model.new_cache(kind or NaiveCache, groups)


class NaiveTokenizer(Wrapped):
    """A tokenizer that decodes a batch in one go."""

    def __init__(self, tokenizer: MultiScaleVQ, dtype: torch.dtype) -> None:
        super().__init__(tokenizer)
        self.pixels, self.dtype = tokenizer.pixels, dtype

    def decode(self, canvas: Canvas) -> Tensor:
        """Return the image (B, 3, H, W) float32 in [0, 1]."""
        with _autocast(canvas.latent, self.dtype):
            return zero_one(self.pixels(canvas.latent).float())


def _autocast(x: Tensor, dtype: torch.dtype) -> torch.autocast:
    half = dtype != torch.float32
    # Without the cache of casts, which would be good for one call only.
    return torch.autocast(x.device.type, dtype if half else None, half, cache_enabled=False)
