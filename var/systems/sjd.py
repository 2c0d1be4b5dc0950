"""Speculative Jacobi decoding as published, over LlamaGen (arXiv 2410.01699).

How the numbers of the original map to our pieces:

- its loop is `decoding`, over the one loop of all models; the condition's prefill, which draws the
  first token, is the first turn, of a window of one.
- slot j of its window is group `done + j` of a turn; what is drawn from its prediction is
  `Look.drawn`, the recorded law of a guess `State.laws`. A guess of its slot i is our position
  i - 1: what it is tested by is the number of that place.
- `jacobi_loop_interval_l` and `_r` are `first` and `last`, `max_num_new_tokens` is `window`,
  `image_top_k` and `image_top_p` are those of `Sampling` and, again, of `PublishedJacobi`.
- the first token's own settings are `Sampling` with one entry a group.
- schemes `speculative_jacobi` and `jacobi` are the tests `speculative` and `match`; initialisations
  `random`, `repeat_horizon` and `sample_horizon` are guesses `random`, `left` and `likeliest`.
"""

from __future__ import annotations

from collections.abc import Mapping

from var.decoding.jacobi_published import PublishedJacobi
from var.errors import UserError
from var.models.base import Backbone
from var.systems import llamagen
from var.systems.base import Checkpoint, Config, Parts, State

CHECKPOINTS: Mapping[str, Checkpoint] = {}

_TESTS = {"speculative_jacobi": "speculative", "jacobi": "match"}


def build(config: Config, state: State) -> Parts:
    """Return the model that is decoded, see `var.systems.llamagen`.

    Args:
        config: of a recording: its `model` holds the constructor's keywords.
        state: published keys to tensors.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    if "model" not in config:
        raise UserError(f"expected model; got {', '.join(config)}")
    return llamagen.build({"model": config["model"]}, state)


def decoding(config: Config, model: Backbone) -> PublishedJacobi:
    """Return the released decoding of a recording's `jacobi` settings.

    Raises:
        UserError: an unknown scheme.
    """
    jacobi = config["jacobi"]
    scheme = jacobi.get("prefix_token_sampler_scheme", "speculative_jacobi")
    if scheme not in _TESTS:
        raise UserError(f"unknown scheme {scheme}; there are: {', '.join(_TESTS)}")
    return PublishedJacobi(
        model,
        jacobi["max_num_new_tokens"],
        first=jacobi["jacobi_loop_interval_l"],
        last=jacobi["jacobi_loop_interval_r"],
        top_k=config["image_top_k"],
        top_p=published_top_p(config["image_top_p"]),
        test=_TESTS[scheme],
    )


def published_top_p(p: float) -> float:
    """Return our top-p of a published one: there 1 is off, here 0 is."""
    return 0.0 if p >= 1 else p
