"""The loss against a discriminator that learns at the same time, and the published one."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from var.errors import UserError


class PatchDiscriminator(nn.Sequential):
    """Judge overlapping patches: image (B, 3, H, W) to logits (B, 1, h, w), high for real ones.

    With its defaults the published PatchGAN (LlamaGen, section 5), layer by layer.

    Args:
        inputs: channels of the images.
        width: channels of the first layer, doubled at each further one, up to eight times that.
        layers: convolutions of stride 2.
        norm: `batch` as published, or `group`, which judges an image by itself, whatever else is
            in its batch; groups are eight, which must divide `width`.

    Raises:
        UserError: no such norm.
    """

    def __init__(
        self, *, inputs: int = 3, width: int = 64, layers: int = 3, norm: str = "batch"
    ) -> None:
        if norm not in ("batch", "group"):
            raise UserError(f"norm={norm} of a discriminator: use batch or group")
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        stages: list[nn.Module] = [nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (a, b) in enumerate(pairwise(widths), start=1):
            stages += [
                nn.Conv2d(a, b, 4, 2 if i < layers else 1, 1, bias=False),
                nn.BatchNorm2d(b) if norm == "batch" else nn.GroupNorm(8, b),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*stages, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of a discriminator that is content with a margin of 1 on both sides."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of a discriminator that is never content: half the cross entropy."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


_KINDS = {"hinge": hinge, "vanilla": vanilla}


def pull(before: Tensor, against: Tensor, last: Tensor) -> Tensor:
    """Return the factor by which a loss pulls at a weight as hard as those before it do together.

    Args:
        before, against: scalars, sum of the losses before it, and that loss.
        last: the weight, of a layer that both depend on; the factor is in 0..10^4, no gradient.
    """
    found = torch.stack(
        [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (before, against)]
    )
    if dist.is_initialized():  # of the whole batch, as by one process
        dist.all_reduce(found)
        found /= dist.get_world_size()
    ours, theirs = found.flatten(1).norm(dim=1)
    return (ours / (theirs + 1e-4)).clamp(0, 1e4)


class Adversarial(nn.Module):
    """Loss against a discriminator that learns at the same time.

    Both losses are returned and summed: the discriminator's weights are held fixed in the
    generator's term and the reconstruction in the discriminator's, so that one backward pass
    gives each its own gradient.

    Args:
        discriminator: image to patch logits.
        weight: of the generator's term.
        start: optimiser steps before the generator's term counts.
        kind: loss of the discriminator, `hinge` or `vanilla`; the generator's is minus its logits.
        discriminator_weight: of the discriminator's term.
        wait: the discriminator begins to learn at `start` too, as published (LlamaGen, section 5),
            instead of at once.
        adaptive: the generator's term is further weighed so that it pulls at the decoder's last
            weight as hard as all terms before it in the objective.
        augment: what changes images in [-1, 1] before they are judged, real or not; None: nothing.

    Raises:
        UserError: no such kind.
    """

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        weight: float = 0.1,
        start: int = 0,
        kind: str = "hinge",
        discriminator_weight: float = 1.0,
        wait: bool = False,
        adaptive: bool = False,
        augment: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise UserError(f"kind={kind} of an adversarial loss: use {' or '.join(_KINDS)}")
        self.discriminator, self.weight, self.start, self.kind = discriminator, weight, start, kind
        self.discriminator_weight, self.wait, self.relative = discriminator_weight, wait, adaptive
        self.augment = augment or nn.Identity()
        self.begun = start <= 0

    def forward(
        self,
        image: Tensor,
        reconstruction: Tensor,
        before: Tensor | None = None,
        last: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the generator's and the discriminator's loss; if adaptive, needs all arguments."""
        fixed = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        guess = self.augment(reconstruction * 2 - 1)
        fooled = -functional_call(self.discriminator, fixed, (guess,)).mean()
        real = self.discriminator(self.augment(image * 2 - 1))
        fake = self.discriminator(guess.detach())
        weight = self.weight * self.begun
        if self.relative and self.begun and torch.is_grad_enabled():
            assert before is not None and last is not None
            weight = weight * pull(before, fooled, last)
        judged = self.discriminator_weight * _KINDS[self.kind](real, fake)
        return {
            "adversarial": weight * fooled,
            "discriminator": judged * self.begun if self.wait else judged,
        }

    def stepped(self, step: int) -> None:
        """Note that optimiser step number `step` is done."""
        self.begun = step >= self.start
