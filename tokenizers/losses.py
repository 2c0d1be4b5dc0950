"""What a reconstruction is judged by: terms behind one contract, summed by `Objective`.

A term is a module that takes (image, reconstruction), both (B, 3, H, W) around [0, 1], and returns
named losses. Terms may have parameters of their own (a discriminator), for the same optimiser. One
that is `relative` is also told what it is weighed against, see `Objective`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from var.errors import UserError


class Reconstruction(nn.Module):
    """Pixel distance, in the units of images in [-1, 1] (the published scale).

    Args:
        l1, l2: weights of the mean absolute and the mean squared error.
    """

    def __init__(self, *, l1: float = 0.0, l2: float = 1.0) -> None:
        super().__init__()
        self.l1, self.l2 = l1, l2

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the weighted errors."""
        error = 2 * (reconstruction - image)
        return {"l1": self.l1 * error.abs().mean(), "l2": self.l2 * error.square().mean()}


class Perceptual(nn.Module):
    """LPIPS distance by the `lpips` package (extra `perceptual`); it downloads its network once.

    Half of the features are left out at random while training, as published.

    Args:
        weight: of the term.
        net: `vgg`, `alex` or `squeeze`.

    Raises:
        UserError: the package is missing, or its network is not there and cannot be fetched.
    """

    def __init__(self, *, weight: float = 1.0, net: str = "vgg") -> None:
        super().__init__()
        try:
            from lpips import LPIPS

            made = LPIPS(net=net, verbose=False)
        except ModuleNotFoundError as error:
            raise UserError(
                "the perceptual loss needs lpips: pip install 'var-toolkit[perceptual]', or leave "
                "it out, objective=pixels"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot fetch the network {net} of the perceptual loss ({error}): copy it into "
                "$TORCH_HOME/hub/checkpoints by hand, or leave it out, objective=pixels"
            ) from error
        self.weight, self.lpips = weight, made.requires_grad_(False)

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the weighted distance."""
        distance = self.lpips(image * 2 - 1, reconstruction * 2 - 1)
        return {"perceptual": self.weight * distance.mean()}


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
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (before, against)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()


class Adversarial(nn.Module):
    """Loss against a discriminator that learns at the same time.

    Both losses are returned and summed: the discriminator's weights are held fixed in the
    generator's term and the reconstruction in the discriminator's, so that one backward pass
    gives each its own gradient.

    Args:
        discriminator: image to patch logits.
        weight: of the generator's term.
        start: training steps before the generator's term counts.
        kind: loss of the discriminator, `hinge` or `vanilla`; the generator's is minus its logits.
        discriminator_weight: of the discriminator's term.
        wait: the discriminator begins to learn at `start` too, as published (LlamaGen, section 5),
            instead of at once.
        adaptive: the generator's term is further weighed so that it pulls at the decoder's last
            weight as hard as all terms before it in the objective.

    Raises:
        UserError: no such kind.
    """

    steps: Tensor

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
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise UserError(f"kind={kind} of an adversarial loss: use {' or '.join(_KINDS)}")
        self.discriminator, self.weight, self.start, self.kind = discriminator, weight, start, kind
        self.discriminator_weight, self.wait, self.relative = discriminator_weight, wait, adaptive
        self.register_buffer("steps", torch.zeros(()))

    def forward(
        self,
        image: Tensor,
        reconstruction: Tensor,
        before: Tensor | None = None,
        last: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the generator's and the discriminator's loss; if adaptive, needs all arguments."""
        fixed = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        fooled = -functional_call(self.discriminator, fixed, (reconstruction * 2 - 1,)).mean()
        real = self.discriminator(image * 2 - 1)
        fake = self.discriminator(reconstruction.detach() * 2 - 1)
        begun = self.steps >= self.start
        if self.training:
            self.steps += 1
        weight = self.weight * begun
        if self.relative and torch.is_grad_enabled():
            assert before is not None and last is not None
            weight = weight * pull(before, fooled, last)
        judged = self.discriminator_weight * _KINDS[self.kind](real, fake)
        return {
            "adversarial": weight * fooled,
            "discriminator": judged * begun if self.wait else judged,
        }


class Objective(nn.Module):
    """The sum of named terms.

    Args:
        terms: modules that take (image, reconstruction) and return named losses. Those with a true
            `relative` weigh themselves against the terms before them: they also take the sum of the
            losses so far, and the weight of the decoder's last layer to compare gradients at.

    Raises:
        UserError: the first term is relative.
    """

    def __init__(self, terms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        first = next(iter(terms), "")
        if first and getattr(terms[first], "relative", False):
            raise UserError(
                f"objective.{first} weighs itself against the terms before it: name another first, "
                f"or say objective.{first}.adaptive=false"
            )

    def forward(
        self, image: Tensor, reconstruction: Tensor, last: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of all terms by name; their sum is what is minimised.

        Args:
            image, reconstruction: (B, 3, H, W) around [0, 1].
            last: weight of the layer that the reconstruction comes out of; relative terms need it.
        """
        losses: dict[str, Tensor] = {}
        for term in self.terms.values():
            if getattr(term, "relative", False):
                before = torch.stack(list(losses.values())).sum()
                losses |= term(image, reconstruction, before, last)
            else:
                losses |= term(image, reconstruction)
        return losses
