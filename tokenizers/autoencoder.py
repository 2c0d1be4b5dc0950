"""The convolutional auto-encoder of the VQ-f16 family: pixels to a latent grid and back.

Parameter names and maths are those of the published VAR tokenizer (VAR, sections 2 and 3.1).
Images inside this file are (B, 3, H, W) in [-1, 1]; latents are (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Pixels decoded at a time: 16 images of 256 x 256 on a GPU, where they take about 3 GB in float32
# at the published width; on a CPU, whose caches are small, one.
_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 20}


class ResBlock(nn.Module):
    """`x + conv2(silu(norm2(conv1(silu(norm1 x)))))`, with a 1x1 shortcut where channels change."""

    def __init__(self, inputs: int, outputs: int, *, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_silu(self.norm1(x)))
        h = self.conv2(self.dropout(_silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over the cells of the grid, with a residual."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "B (n C) h w -> n B 1 (h w) C", n=3)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "B 1 (h w) C -> B C h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve the grid: a zero column and row on the far sides, then a 3x3 convolution, stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the grid: nearest neighbour, then a 3x3 convolution.

    Outside autograd, on channels-last maps, both are one convolution on the small grid: of the nine
    cells that a window covers after enlarging only four differ.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not x.is_contiguous(memory_format=torch.channels_last):
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return _convolve_enlarged(x, self.conv.weight, self.conv.bias)


def _convolve_enlarged(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the 3x3 convolution of x (B, C, h, w), enlarged twice, as (B, O, 2h, 2w)."""
    batch, (h, w), outputs = len(x), x.shape[-2:], len(weight)
    # Which of three taps fall on the two cells below the window: for even, and for odd positions.
    taps = x.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    small = torch.einsum("aip, bjq, OIpq -> abOIij", taps, taps, weight).flatten(0, 2)
    small = small.contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.repeat(4)
    y = F.conv2d(x, small, bias, padding=1).permute(0, 2, 3, 1).unflatten(-1, (2, 2, outputs))
    large = y.new_empty(batch, h, 2, w, 2, outputs)
    for a, b in product(range(2), repeat=2):
        large[:, :, a, :, b] = y[:, a : a + h, b : b + w, a, b]
    return large.view(batch, 2 * h, 2 * w, outputs).permute(0, 3, 1, 2)


def _silu(x: Tensor) -> Tensor:
    # In place where nobody needs the input again: it is always the fresh result of a norm.
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int, *, dropout: float, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout=dropout, groups=groups)
        self.attn_1 = SpatialAttention(channels, groups=groups)
        self.block_2 = ResBlock(channels, channels, dropout=dropout, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where there is any."""

    def __init__(
        self, inputs: int, outputs: int, *, blocks: int, attend: bool, dropout: float, groups: int
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.channels = widths[-1]
        self.block = nn.ModuleList(
            ResBlock(a, b, dropout=dropout, groups=groups)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attn = nn.ModuleList(
            SpatialAttention(outputs, groups=groups) for _ in range(blocks if attend else 0)
        )
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.downsample(self.upsample(x))


class Encoder(nn.Module):
    """Image (B, 3, H, W) to latent (B, channels, H / f, W / f), f = 2 ** (levels - 1).

    Args:
        channels: latent channels.
        width: channels of the first level; level i has `width * multipliers[i]`.
        multipliers: one factor per resolution, finest first.
        blocks: residual blocks per level.
        dropout: inside residual blocks, 0..1.
        groups: of every group norm; divides all widths.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        dropout: float = 0.0,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        now, last = width, len(multipliers) - 1
        for i, factor in enumerate(multipliers):
            level = Level(
                now, width * factor, blocks=blocks, attend=i == last, dropout=dropout, groups=groups
            )
            now = level.channels
            if i < last:
                level.downsample = Downsample(now)
            self.down.append(level)
        self.mid = Middle(now, dropout=dropout, groups=groups)
        self.norm_out = nn.GroupNorm(groups, now, eps=1e-6)
        self.conv_out = nn.Conv2d(now, channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the latent (B, C, h, w) of an image in [-1, 1]."""
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        return self.conv_out(_silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent (B, channels, h, w) to image (B, 3, H, W), not clamped.

    Takes the arguments of `Encoder`; every level has one residual block more than there. `up` is
    indexed by resolution, the coarsest (last) level runs first.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        dropout: float = 0.0,
        groups: int = 32,
    ) -> None:
        super().__init__()
        now, last = width * multipliers[-1], len(multipliers) - 1
        self.conv_in = nn.Conv2d(channels, now, 3, padding=1)
        self.mid = Middle(now, dropout=dropout, groups=groups)
        levels: list[Level] = []
        for i in reversed(range(len(multipliers))):
            level = Level(
                now,
                width * multipliers[i],
                blocks=blocks + 1,
                attend=i == last,
                dropout=dropout,
                groups=groups,
            )
            now = level.channels
            if i > 0:
                level.upsample = Upsample(now)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(groups, now, eps=1e-6)
        self.conv_out = nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the image (B, 3, H, W) of a latent, in [-1, 1] up to over- and undershoot."""
        h = self.mid(self.conv_in(latent))
        for i in reversed(range(len(self.up))):
            h = self.up[i](h)
        return self.conv_out(_silu(self.norm_out(h)))


def zero_one(image: Tensor) -> Tensor:
    """Map an image from [-1, 1] to [0, 1], clamped."""
    return image.clamp(-1, 1).add(1).div(2)


def minus_one_one(image: Tensor) -> Tensor:
    """Map an image from [0, 1] to [-1, 1]."""
    return torch.add(image * 2, -1)


def decoded(latent: Tensor, pixels: Callable[[Tensor], Tensor], factor: int) -> Tensor:
    """Return the images (B, 3, H, W) float32 in [0, 1] of a latent (B, C, h, w).

    Outside autograd few images are worked on at a time: only the result grows with the batch.

    Args:
        latent: of the images.
        pixels: what decodes, to around [-1, 1].
        factor: pixels per cell and side.
    """
    if torch.is_grad_enabled():
        return zero_one(pixels(latent).float())
    count = latent.shape[-2] * latent.shape[-1] * factor**2
    few = max(1, _PIXELS.get(latent.device.type, _PIXELS["cuda"]) // count)
    return torch.cat([zero_one(pixels(z).float()) for z in latent.split(few)])


def layout(module: nn.Module, dtype: torch.dtype) -> torch.memory_format:
    """Return the memory format in which a module's convolutions in `dtype` are fastest.

    Channels last, except for half-precision maps of few channels on the CPU.
    """
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d)]
    narrow = min(max(weight.shape[:2]) for weight in weights) < 64
    half = dtype != torch.float32 and weights[0].device.type == "cpu"
    return torch.contiguous_format if narrow and half else torch.channels_last
