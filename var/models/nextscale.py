"""What next-scale transformers share: each scale of an image is predicted from all coarser ones.

Stem, modulation, attention, perceptron, norm and head are those of VAR (arXiv 2404.02905), to which
section numbers refer; models differ in what their blocks make of them. Letters: R rows, L positions
of a span, D width, C latent channels, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from var.cache.base import Cache, CacheKind
from var.cache.none import NoMemory
from var.cache.static import Static
from var.condition import Condition
from var.heads.categorical import Categorical
from var.models.base import check_span
from var.nn.adaln import Modulated, Modulation, Offset
from var.nn.attention import Attend, Attention, attend
from var.nn.compiling import compile_methods
from var.nn.mlp import Mlp, drop_path
from var.nn.stem import Stem
from var.schedule import Schedule, Span


class Block(nn.Module):
    """What blocks are made of; a model's own says in `forward(x, condition, span, memory)` how.

    Its `before` and `after`, what lies on either side of the memory, may be compiled.

    Args:
        width: of the residual stream, D.
        heads: of the attention.
        hidden: width of the perceptron's middle.
        eps: of the norms.
        shared_adaln: the condition is a modulation already, to which the block adds an offset;
            otherwise it is a class embedding, which the block turns into a modulation.
        l2_norm: cosine attention.
        drop: dropout after projection and perceptron.
        attention_drop: dropout of attention weights.
        path: probability of dropping a branch in training.
    """

    # Of the residual stream. Each has a gate, a scale and a shift, and a modulation begins with all
    # gates, after which come all scales and all shifts.
    BRANCHES: ClassVar[int]

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int,
        eps: float,
        shared_adaln: bool,
        l2_norm: bool,
        drop: float,
        attention_drop: float,
        path: float,
    ) -> None:
        super().__init__()
        parts = 3 * self.BRANCHES
        self.modulation = Offset(width, parts) if shared_adaln else Modulation(width, parts)
        self.norm = Modulated(width, eps)
        self.attention = Attention(
            width, heads, l2_norm=l2_norm, drop=drop, attention_drop=attention_drop
        )
        self.attend: Attend = attend
        self.mlp = Mlp(width, hidden, drop=drop)
        self.path = drop_path(path)

    def add(self, x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
        """Return the stream (R, L, D) after a branch h of it, with a gate (R, D)."""
        # Blocks differ in their path: if it were looked at, each would be compiled for itself.
        return torch.addcmul(x, self.path(h) if self.training else h, gate[:, None])


class NextScale(nn.Module):
    """A next-scale prediction transformer.

    Args:
        depth: number of blocks.
        width: of the residual stream, D.
        heads: attention heads.
        vocabulary: number of codes.
        channels: of the latent, C.
        classes: number of classes; the null class comes on top.
        ladder: side or (h, w) of each scale. The model can only be run on this schedule.
        mlp_ratio: hidden width of the perceptrons in units of `width`.
        norm_eps: of all layer norms.
        shared_adaln: one modulation for all blocks, plus an offset in each.
        l2_norm: cosine attention.
        drop: dropout after projections and perceptrons.
        attention_drop: dropout of attention weights.
        drop_path: probability of dropping a branch of the last block; rises linearly from 0.
        label_smoothing: of the training loss.
        init_gate: initial size of the modulation's first two gates (published `alng`).
        init_modulation: of all that follows, and of the head's modulation (`aln`).
        init_head: of the head's weight (`hd`).
    """

    # What a model is made of.
    BLOCK: ClassVar[type[Block]]

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        heads: int,
        vocabulary: int,
        channels: int,
        classes: int,
        ladder: Sequence[int | Sequence[int]],
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        shared_adaln: bool = False,
        l2_norm: bool = True,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
        init_gate: float = 1e-3,
        init_modulation: float = 0.5,
        init_head: float = 0.02,
    ) -> None:
        if type(self) is NextScale:
            raise TypeError("it says nothing of blocks: take a model that does, such as VAR")
        super().__init__()
        self.schedule = Schedule.scales(ladder)
        self.stem = Stem(channels, width, classes=classes, schedule=self.schedule)
        self.shared = Modulation(width, 3 * self.BLOCK.BRANCHES) if shared_adaln else nn.Identity()
        block = partial(self.BLOCK, width, heads, hidden=round(width * mlp_ratio), eps=norm_eps)
        block = partial(block, shared_adaln=shared_adaln, l2_norm=l2_norm)
        block = partial(block, drop=drop, attention_drop=attention_drop)
        paths = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(block(path=path) for path in paths)
        self.modulation = Modulation(width, 2)
        self.norm = Modulated(width, norm_eps)
        self.head = Categorical(width, vocabulary, label_smoothing=label_smoothing)
        self.initialise(gate=init_gate, modulation=init_modulation, head=init_head)

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache of the given kind, static by default, for the first `groups`."""
        return (kind or Static)(len(self.blocks), groups)

    def forward(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return features for the head, (R, L, D).

        Args:
            x: (R, L, C) the coarser scales' sum, resized to each scale of `span`; what it holds for
                scale 0 is ignored, the class stands in its place.
            span: scales of this model's ladder; without a cache they begin with scale 0.
            condition: labels (R,); -1 and `classes` both stand for the null class.
            cache: what was read before; the caller advances it.

        Raises:
            ValueError: another ladder, scales out of turn, or (seen on the CPU only) a label out of
                range.
        """
        check_span(span, self.schedule, cache)
        layers = cache.layers if cache is not None else [NoMemory()] * len(self.blocks)
        label = layers[0].once(self.stem.classes, condition.labels)
        shared = layers[0].once(self.shared, label)
        # The stream stays in float32, whatever the type of weights and matrix products.
        h = self.stem(x, span, label).float()
        for block, memory in zip(self.blocks, layers, strict=True):
            h = block(h, shared, span, memory)
        return self.norm(h, *layers[0].once(self.modulation, label).unbind(dim=1))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the two halves of the blocks, for any number of positions.

        What lies between the halves, a block's memory, is left as it is: any kind will do.

        Args:
            args, kwargs: for `torch.compile`.
        """
        compile_methods(self.blocks, ("before", "after"), *args, **kwargs)

    @torch.no_grad()
    def initialise(self, *, gate: float, modulation: float, head: float) -> None:
        """Draw new weights: normal with std `sqrt(1 / 3D)`, biases 0, then scaled (section 5).

        Convolutions are drawn with std 0.02. Of the gates, the first two are scaled by `gate`. What
        is no map, embedding or position stays as it was made.
        """
        std = (3 * self.stem.linear.out_features) ** -0.5
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding | nn.Conv1d):
                nn.init.trunc_normal_(part.weight, std=0.02 if isinstance(part, nn.Conv1d) else std)
            if isinstance(part, nn.Linear | nn.Conv1d) and part.bias is not None:
                nn.init.zeros_(part.bias)
        for place in (self.stem.start, self.stem.positions, self.stem.levels):
            nn.init.trunc_normal_(place, std=std)
        self.head.linear.weight.mul_(head)
        self.modulation.weight.mul_(modulation)
        parts = 3 * self.BLOCK.BRANCHES
        for block in self.blocks:
            block.modulation.scale_parts([gate] * 2 + [modulation] * (parts - 2))
            block.attention.proj.weight.div_((2 * len(self.blocks)) ** 0.5)
            block.mlp.fall.weight.div_((2 * len(self.blocks)) ** 0.5)
