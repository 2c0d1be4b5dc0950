"""CoDe as published: a large VAR drafts, a small one refines (arXiv 2411.17787).

Both are VAR and share its tokenizer: see `var.systems.var`. How the other numbers of the original
map to our pieces, with `decoding = Collaborative(parts.model, parts.closer, switch=N)`:

- the drafter is `parts.model`, the refiner `parts.closer`; of a state with a refiner alone it is
  `parts.model`.
- the hand-over tensor is `canvas.read(schedule[1 : N + 1])` of the canvas after turn N - 1, and its
  `latent` the f_hat that is handed over.
- guided logits and ids are those of the decoding's turns, of whichever model. The refiner's logits
  of the whole prefix are its head on `schedule[: N + 1]`, read without a cache; the product asks
  the head for scale N only.
- the original draws tokens for the prefix from the unguided half of these logits and throws them
  away; the product does not. A stream of its own, `Rng([g_seed])`, draws scale after scale of the
  drafter; another one first what is thrown away, `prediction.shaped(sampling.at(k)).sample(rng)`,
  and then the refiner's scales.
- lists of settings are tuples in `Sampling`, temperature comes last: `temper_last=True`.
- in-painting is `Framed` around the canvas; `fhat_gt_k` is its `source`, `mask_out` its `hole`.
- the forward on the first `mask_l` tokens is the one on `schedule[:k]`; the losses of distillation
  are `var.training.distil.distance`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from var.errors import UserError
from var.systems import var
from var.systems.base import Checkpoint, Config, Parts, State, split

_HALVES = ("drafter", "refiner")
# `settings` and `mask_l` describe what was recorded, in recordings of the losses.
_IGNORED = {"settings", "mask_l"}


def build(config: Config, state: State) -> Parts:
    """Return the parts that a published state holds.

    Args:
        config: `{"vae": ..., "drafter": ..., "refiner": ...}`, constructor keywords of each class;
            a half that the state does not hold may be left out.
        state: published keys to tensors, prefixed `drafter/`, `refiner/` and `vae/`, or some of
            these.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    states = split(state, (*_HALVES, "vae"))
    held = [half for half in _HALVES if states[half]]
    if missing := [name for name in ("vae", *held) if name not in config]:
        raise UserError(f"missing keys in the configuration of CoDe: {', '.join(missing)}")
    if unknown := sorted(config.keys() - states.keys() - _IGNORED):
        raise UserError(f"unknown keys in the configuration of CoDe: {', '.join(unknown)}")
    vae = {"cls": "VQVAE", **config["vae"]}
    halves = [var.build({"vae": vae, "var": config[half]}, states[half]) for half in held]
    tokenizer = var.build(vae, states["vae"]) if states["vae"] else Parts()
    schedules = {part.schedule for part in halves} or {tokenizer.schedule}
    if len(schedules) > 1:
        raise UserError("the drafter and the refiner of CoDe are of different ladders")
    opener, closer, *_ = *halves, Parts(), Parts()
    return Parts(
        model=opener.model,
        tokenizer=tokenizer.tokenizer,
        schedule=schedules.pop(),
        model_spec=opener.model_spec,
        tokenizer_spec=tokenizer.tokenizer_spec,
        closer=closer.model,
        closer_spec=closer.model_spec,
    )


def _half(model: str, file: str, switch: int) -> Checkpoint:
    """Return a half of the published pair for a switch, of the size of a released VAR.

    A half is a VAR in every respect, so that it is that system's to build.
    """
    return replace(
        var.CHECKPOINTS[model],
        repository="Zigeng/VAR_CoDe",
        files={"var": f"{file}_{switch}.pth", "vae": var.CHECKPOINTS["var-vae"].files[""]},
        sampling={
            "guidance": 1.5,
            "top_k": 600,
            "top_p": 0.96,
            "temperature": (1.1,) * 7 + (1.0,) * 3,
            "temper_last": True,
        },
    )


def _pair(switch: int) -> dict[str, Checkpoint]:
    drafter, refiner = f"code-{switch}", f"code-{switch}-refiner"
    decoding = {"name": "collaborative", "closer": refiner, "switch": switch}
    half = partial(_half, switch=switch)
    return {
        drafter: replace(half("var-d30", "drafter"), decoding=decoding),
        refiner: half("var-d16", "refiner"),
    }


CHECKPOINTS = {name: half for n in (9, 8, 7, 6) for name, half in _pair(n).items()}
