"""The naive training step: a VAR's loss written the obvious way.

Attention is a softmax of all scores plus a dense bias that forbids what is ahead, and the loss is
that of all logits at once, in float32. Built from the product's modules, which hold the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.condition import Condition
from var.models.var import VAR, Block
from var.nn.attention import Attention, CosineScale
from var.schedule import Span


class NaiveTraining(nn.Module):
    """A VAR whose forward pass is its training loss.

    Args:
        model: the VAR; its weights are shared.
    """

    def __init__(self, model: VAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, span: Span, condition: Condition, tokens: Tensor) -> Tensor:
        """Return the loss of each position (B, L) of what a canvas shows and what comes of it."""
        model: Any = self.model
        mask = span.mask(device=x.device)
        bias = torch.zeros(len(span), len(span), device=x.device)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf)
        label = model.stem.classes(condition.labels)
        shared, h = model.shared(label), model.stem(x, span, label).float()
        for block in model.blocks:
            h = _block(block, h, shared, bias)
        scale, shift = model.modulation(label)[:, :, None].unbind(dim=1)
        logits = model.head.linear(_norm(h, scale, shift)).float()
        smoothing = model.head.label_smoothing
        return F.cross_entropy(
            logits.transpose(1, 2), tokens, reduction="none", label_smoothing=smoothing
        )


def _block(block: Block, x: Tensor, condition: Tensor, bias: Tensor) -> Tensor:
    parts = block.modulation(condition)[:, :, None].unbind(dim=1)
    gate1, gate2, scale1, scale2, shift1, shift2 = parts
    attention, mlp = block.attention, block.mlp
    h = _attention(attention, _norm(x, scale1, shift1), bias)
    x = x + block.path(h) * gate1
    h = F.gelu(mlp.rise(_norm(x, scale2, shift2)), approximate="tanh")
    return x + block.path(mlp.drop(mlp.fall(h))) * gate2


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift).to(shift.dtype)


def _attention(attention: Attention, x: Tensor, bias: Tensor) -> Tensor:
    qkv = attention.qkv(x) + torch.cat(
        [attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias]
    )
    q, k, v = rearrange(qkv, "R L (three N d) -> three R N L d", three=3, N=attention.heads)
    if isinstance(attention.scale, CosineScale):
        scale = attention.scale.log.clamp(max=CosineScale.LIMIT).exp()[:, None, None]
        q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
    else:
        q = q * attention.scale.factor
    weights = (q @ k.transpose(-2, -1) + bias).softmax(dim=-1)
    weights = F.dropout(weights, attention.attention_drop, attention.training)
    out = rearrange(weights.to(v.dtype) @ v, "R N L d -> R L (N d)")
    return attention.drop(attention.proj(out))
