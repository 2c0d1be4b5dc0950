"""The naive row: the same steps written the obvious way, to measure what the product adds.

Keys and values grow by concatenation, the modulation is computed at every scale, the head sees all
rows, all logits are sorted for each token, everything is contiguous and out of place, half
precision is autocast over float32 weights. Built from the product's pieces, new modules around the
same weights, so that no fast route of a loaded run is left in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var import recipe
from var.bench.naive_heads import autocast, naive_head
from var.bench.naive_mvar import NaiveMVAR
from var.bench.naive_raster import NaiveRaster
from var.cache.base import Cache, CacheKind, Plain
from var.cache.dense import DenseMemory
from var.condition import Condition
from var.errors import UserError
from var.models.base import Backbone
from var.models.mvar import MVAR
from var.models.raster import Raster
from var.schedule import Span
from var.store import Run
from var.tokenizers.around import Wrapped
from var.tokenizers.autoencoder import ResBlock, Upsample, zero_one
from var.tokenizers.tokenizer import Canvas, Tokenizer


def naive(run: Run, dtype: torch.dtype = torch.float32) -> Run:
    """Return a run that computes what another one does, the obvious way.

    Args:
        run: in float32; its weights are shared where their layout allows.
        dtype: what products are computed in; the weights stay in float32.

    Raises:
        UserError: nobody has written the obvious way to use the run's head.
    """
    if run.model is None or run.recipe.backbone is None:
        raise UserError("a naive row needs a generator: say naive=false")
    model = _plain(run.model, run.recipe.backbone)
    tokenizer = _plain(run.tokenizer, run.recipe.tokenizer)
    head = naive_head(model.head, dtype)  # type: ignore[arg-type]
    if head is None:
        raise UserError(f"there is no naive row for heads of {type(model.head).__name__}")
    if isinstance(model, Raster):
        model = NaiveRaster(model)
    elif isinstance(model, MVAR):
        model = NaiveMVAR(model)
    backbone = NaiveBackbone(cast(Backbone, model), head, dtype)
    return Run(run.recipe, NaiveTokenizer(tokenizer, dtype), backbone)


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

    def __init__(self, layers: int, groups: int | None = None, *, recurrent: bool = False) -> None:
        super().__init__([NaiveMemory(groups) for _ in range(layers)], recurrent=recurrent)


class NaiveBackbone(nn.Module):
    """A backbone that casts its weights at each use, and has a naive head and cache."""

    def __init__(self, model: Backbone, head: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.head, self.dtype = model, head, dtype

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The blocks of the model."""
        return self.model.blocks

    def forward(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return features for the head, (R, L, D)."""
        with autocast(x, self.dtype):
            return self.model(x, span, condition, cache)

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache, naive by default."""
        return self.model.new_cache(kind or NaiveCache, groups)


class NaiveTokenizer(Wrapped):
    """A tokenizer that decodes a batch in one go."""

    def __init__(self, tokenizer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(cast(Tokenizer, tokenizer))
        self.pixels, self.dtype = cast(Callable[[Tensor], Tensor], tokenizer.pixels), dtype

    def decode(self, canvas: Canvas) -> Tensor:
        """Return the image (B, 3, H, W) float32 in [0, 1]."""
        with autocast(canvas.latent, self.dtype):
            return zero_one(self.pixels(canvas.latent).float())
