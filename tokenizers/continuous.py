"""The continuous tokenizer: a KL autoencoder of the diffusers library, and scales of its latent.

Any `AutoencoderKL` will do. Where its latents lie and how large they are belongs to the tokenizer:
generators see them standardised (FlowAR, sections 3 and 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from typing import Any, NamedTuple, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.autoencoder import decoded, layout, minus_one_one
from var.tokenizers.resample import Resample, shrunk
from var.tokenizers.tokenizer import Canvas

# Of the logarithm of the variance, as published: beyond it there is no noise, or nothing else.
_LEAST, _MOST = -30.0, 20.0


class Posterior(NamedTuple):
    """Independent normal distributions of the cells of a latent.

    Attributes:
        mean, log_variance: (B, C, h, w).
    """

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Posterior:
        """Return the distribution of moments (B, 2 C, h, w): means, then logs of variances."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        return cls(mean, log_variance.clamp(_LEAST, _MOST))

    @property
    def deviation(self) -> Tensor:
        """(B, C, h, w)."""
        return (self.log_variance / 2).exp()

    def sample(self, rng: Rng | None) -> Tensor:
        """Draw latents (B, C, h, w), one stream per image; without streams take the mean."""
        if rng is None:
            return self.mean
        return self.mean + self.deviation * rng.normal(*self.mean.shape[1:]).to(self.mean)

    def divergence(self) -> Tensor:
        """Return the Kullback-Leibler divergence from N(0, 1) of each image, (B,), in nats."""
        inside = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return inside.sum(dim=(1, 2, 3)) / 2


class KL(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to scales of a continuous latent, and back.

    A token is a vector (C,). Each scale is the whole latent at its size (`Resample`); the last one
    is the latent.

    Args:
        vae: keywords of diffusers' `AutoencoderKL`. They say where the buffers `scale` and `shift`
            begin, see `reset_buffers`: latents are `(z - shift) * scale`.
        encoder, decoder: leave a half out by passing False.
    """

    any_schedule = True
    shift: Tensor
    scale: Tensor

    def __init__(
        self, *, vae: Mapping[str, Any], encoder: bool = True, decoder: bool = True
    ) -> None:
        super().__init__()
        self.vae = AutoencoderKL(**{**vae})
        config = self.vae.config
        if (config["in_channels"], config["out_channels"]) != (3, 3):
            raise ValueError(
                f"images have 3 channels, the autoencoder reads {config['in_channels']} "
                f"and makes {config['out_channels']}"
            )
        for name, present in (("encoder", encoder), ("decoder", decoder)):
            if not present:
                delattr(self.vae, name)
                delattr(self.vae, {"encoder": "quant_conv", "decoder": "post_quant_conv"}[name])
        self.channels: int = config["latent_channels"]
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        self.register_buffer("shift", None)
        self.register_buffer("scale", None)
        self.reset_buffers()

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        """What may be trained by itself, by name."""
        vae = self.vae  # some have no convolutions between
        halves = {
            "encoder": [vae.encoder, vae.quant_conv],
            "decoder": [vae.decoder, vae.post_quant_conv],
        }
        return {half: [part for part in parts if part] for half, parts in halves.items()}

    def reset_buffers(self) -> None:
        """Put shift and scale where the autoencoder's keywords have them.

        The shift is `shift_factor` or, channel by channel, `latents_mean`; the scale is
        `scaling_factor`, divided by `latents_std` if there is one.
        """
        config, device = self.vae.config, next(self.parameters()).device

        def each(value: float | Sequence[float]) -> Tensor:
            row = torch.tensor(value, dtype=torch.float32, device=device)
            return row.reshape(-1, 1, 1).expand(self.channels, 1, 1).clone()

        self.shift = each(config["latents_mean"] or config["shift_factor"] or 0.0)
        self.scale = each(config["scaling_factor"]) / each(config["latents_std"] or 1.0)

    @property
    def terms(self) -> dict[str, int]:
        """Number of latent channels."""
        return {"channels": self.channels}

    def compress(self, image: Tensor, schedule: Schedule) -> Tensor:
        """Return the moments (B, 2 C, h, w) of an image (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: the image's sides are not multiples of the down-sampling factor.
        """
        if image.shape[-2] % self.factor or image.shape[-1] % self.factor:
            raise ValueError(
                f"image sides must be multiples of {self.factor}, got {tuple(image.shape[-2:])}"
            )
        image = minus_one_one(image.to(next(self.vae.encoder.parameters()).dtype))
        return self._quantised("quant_conv", self.vae.encoder(image))

    def tokens(self, code: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the vectors (B, L_k, C) of each scale, of moments (B, 2 C, h, w).

        The latent is drawn; without streams it is the mean.
        """
        return shrunk(self.standardised(Posterior.of(code).sample(rng)), schedule)

    def encode(self, image: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the vectors (B, L_k, C) of each scale of an image (B, 3, H, W) in [0, 1]."""
        return self.tokens(self.compress(image, schedule), schedule, rng)

    def standardised(self, latent: Tensor) -> Tensor:
        """Return a latent (B, C, h, w) of the autoencoder as generators see it."""
        return (latent - self.shift) * self.scale

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the vectors (B, L, C) as they are."""
        return tokens

    def blank(self, batch: int, schedule: Schedule) -> Resample:
        """Return a canvas on which no scale is written."""
        latent = self.scale.new_zeros(batch, self.channels, *schedule.grids[-1])
        first = self.scale.new_zeros(batch, schedule.sizes[0], self.channels)
        return Resample(schedule, 0, latent, (first,), self.embed)

    def decode(self, canvas: Canvas) -> Tensor:
        """Return the image (B, 3, H, W) float32 in [0, 1] of what is written so far."""
        return decoded(canvas.latent, self.pixels, self.factor)

    def pixels(self, latent: Tensor) -> Tensor:
        """Return the decoder's image (B, 3, H, W) of a latent: around [-1, 1], not clamped."""
        return self._decoded(latent / self.scale + self.shift)

    def fast(self, dtype: torch.dtype) -> Self:
        """Return the same tokenizer with a decoder for inference in `dtype`, laid out to be fast.

        The encoder is shared, and stays in float32.
        """
        twin = copy(self)
        twin._modules = {**self._modules, "vae": copy(self.vae)}
        twin.vae._modules = {**self.vae._modules}
        if "decoder" in self.vae._modules:
            form = layout(self.vae.decoder, dtype)
            for name in ("decoder", "post_quant_conv"):
                if (half := getattr(self.vae, name)) is not None:
                    setattr(twin.vae, name, deepcopy(half).to(dtype=dtype, memory_format=form))
        return twin

    def forward(self, image: Tensor, rng: Rng) -> tuple[Tensor, Posterior]:
        """Reconstruct for training: image around [0, 1], not clamped, and what it is drawn from."""
        posterior = Posterior.of(
            self._quantised("quant_conv", self.vae.encoder(minus_one_one(image)))
        )
        return (self._decoded(posterior.sample(rng)) + 1) / 2, posterior

    def _decoded(self, latent: Tensor) -> Tensor:
        latent = latent.to(next(self.vae.decoder.parameters()).dtype)
        return self.vae.decoder(self._quantised("post_quant_conv", latent))

    def _quantised(self, name: str, x: Tensor) -> Tensor:
        convolution = getattr(self.vae, name)  # None in autoencoders that do without
        return x if convolution is None else convolution(x)
