"""Checks of VAR's transformer: teacher forcing, generation, filters, editing, published sizes."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tests.golden_checks.case import Case
from tests.golden_checks.var_tokenizer import grid
from var.condition import Condition
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.editing import Frame, Painting
from var.edits import inpaint, outpaint
from var.heads.base import Prediction
from var.heads.categorical import CategoricalPrediction
from var.models.var import VAR
from var.nn.attention import Attention
from var.published import Parts
from var.random import Rng
from var.sampling import Guide, Sampling
from var.schedule import Schedule, Span
from var.tokenizers.around import Wrapped
from var.tokenizers.canvas import Kept, keep_masks
from var.tokenizers.tokenizer import Canvas, Tokenizer

# What the recordings hold in place of minus infinity.
EXCLUDED = -1e30


def with_first(x: Tensor, schedule: Schedule) -> Tensor:
    """Put zeros in front of the original's input, which leaves scale 0 out."""
    return torch.cat([x.new_zeros(len(x), schedule.sizes[0], x.shape[2]), x], dim=1)


def watch(
    module: nn.Module, seen: dict[str, Tensor], name: str, *, entering: bool = False
) -> RemovableHandle:
    """Note what enters or leaves a module under `name`."""

    def note(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        seen[name] = args[0] if entering else result

    return module.register_forward_hook(note)


def watch_attention(attention: Attention, seen: dict[str, Tensor]) -> None:
    """Note what enters the first half of an attention, and what leaves the second."""
    split, project = attention.split, attention.project

    def noting_split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen["attn_in_0"] = x
        return split(x)

    def noting_project(out: Tensor) -> Tensor:
        seen["attn_out_0"] = project(out)
        return seen["attn_out_0"]

    attention.split, attention.project = noting_split, noting_project


def plain_logits(model: VAR, h: Tensor, span: Span) -> Tensor:
    return model.head(h, span, Guide(scale=1, rows=1)).logits


@torch.no_grad()
def check_teacher_forcing(case: Case) -> None:
    parts = case.build()
    model, schedule = parts.model, parts.schedule
    seen: dict[str, Tensor] = {}
    first = model.blocks[0]
    watch(first, seen, "x0", entering=True)
    watch(model.shared, seen, "cond")
    watch_attention(first.attention, seen)
    watch(first.mlp, seen, "ffn_out_0")
    for k, name in case.numbered("block"):
        watch(model.blocks[k], seen, name)
    rate = case.config.get("var", case.config)["cond_drop_rate"]
    condition = Condition(case.inputs["label"]).dropped(case.inputs["drop_uniform"], rate)
    span = schedule[:]
    h = model(with_first(case.inputs["x"], schedule), span, condition)
    seen |= {"head_norm": h, "logits": plain_logits(model, h, span)}
    seen["cond"] = seen["cond"].view_as(case.outputs["cond"])
    for name, tensor in seen.items():
        case.expect(name, tensor)


@torch.no_grad()
def check_published(case: Case) -> None:
    parts = case.build()
    model, schedule = parts.model, parts.schedule
    seen: dict[str, Tensor] = {}
    blocks = [re.fullmatch(r"block_(\d+)_sub", name) for name in case.outputs]
    for found in filter(None, blocks):
        watch(model.blocks[int(found[1])], seen, found[0])
    span = schedule[:]
    h = model(with_first(case.inputs["x"], schedule), span, Condition(case.inputs["label"]))
    logits = plain_logits(model, h, span)
    for name, tensor in seen.items():
        case.expect(name, tensor[:, ::20, ::32])
    case.expect("logits_sub", logits[:, :, ::128])
    rows = [int(r) for r in re.findall(r"\d+", case.about["outputs"]["logits_rows"].split("]")[0])]
    case.expect("logits_rows", logits[0, rows[1:], ::16])
    top = logits.topk(2).values
    case.expect("top2_gap", top[..., 0] - top[..., 1])
    clear = case.outputs["top2_gap"] > 4 * case.about["atol"]
    case.expect("argmax", torch.where(clear, logits.argmax(-1), case.outputs["argmax"]))


class Recorded(Rng):
    """Random streams that play recorded noise back."""

    def __init__(self, noise: list[Tensor]) -> None:
        super().__init__([0])
        self.noise = iter(noise)

    def exponential(self, *shape: int) -> Tensor:
        return next(self.noise).view(-1, *shape)


class Observed(Sequential):
    """Sequential decoding that keeps what it saw, one entry a turn.

    Attributes:
        raw, guided: logits of the model's rows, and after guidance.
        shaped: predictions after the filters.
        tokens: what was drawn.
    """

    def __init__(self, model: VAR) -> None:
        super().__init__(model)
        self.raw: list[Tensor] = []
        self.guided: list[Tensor] = []
        self.shaped: list[CategoricalPrediction] = []
        self.tokens: list[Tensor] = []
        self.hook = model.head.register_forward_hook(self.note)

    def note(self, head: nn.Module, args: tuple, prediction: CategoricalPrediction) -> None:
        h, span, guide = args
        self.guided.append(prediction.logits)
        if guide.rows > 1:  # not `head(...)`: that would call this hook again
            self.raw.append(head.forward(h, span, replace(guide, scale=1, rows=1)).logits)

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        drawn = super().settle(prediction, rng)
        self.shaped.append(prediction)
        self.tokens += drawn
        return drawn


def run(
    parts: Parts,
    labels: Tensor,
    sampling: Sampling,
    rng: Rng | None = None,
    canvas: Canvas | None = None,
) -> tuple[Observed, list[Canvas]]:
    """Generate; return what was observed, and the canvas after each turn."""
    observed = Observed(parts.model)
    turns = decide(
        parts.tokenizer, parts.schedule, Condition(labels), observed, sampling, rng, canvas=canvas
    )
    canvases = list(turns)
    observed.hook.remove()
    return observed, canvases


def settings(case: Case) -> Sampling:
    call = case.call
    return Sampling(
        guidance=call["cfg"],
        top_k=call.get("top_k", 0),
        top_p=call.get("top_p", 0.0),
        smooth=call.get("more_smooth", False),
    )


def expect_turns(case: Case, stem: str, values: list[Tensor]) -> None:
    for k, value in enumerate(values):
        case.expect(f"{stem}_{k}", value)


def expect_images(case: Case, parts: Parts) -> Canvas:
    """Compare logits, ids and latents of all turns, and images; return the last canvas."""
    observed, canvases = run(parts, case.inputs["label"], settings(case))
    expect_turns(case, "raw_logits", observed.raw or both_halves(case, parts, canvases[-1]))
    expect_turns(case, "cfg_logits", observed.guided)
    expect_turns(case, "idx", observed.tokens)
    expect_turns(case, "fhat", [canvas.latent for canvas in canvases])
    case.expect("img", parts.tokenizer.decode(canvases[-1]))
    return canvases[-1]


def check_greedy(case: Case) -> None:
    parts, sampling = case.build(), settings(case)
    canvas = expect_images(case, parts)
    for k in range(1, len(parts.schedule)):
        view = grid(canvas.read(parts.schedule[k : k + 1]), parts.schedule, k)
        case.expect(f"next_{k - 1}", view)
    # The two extra runs are described in words only.
    for stem, guided in {
        "uncond_idx": sampling,
        "nocfg_idx": replace(sampling, guidance=0),
    }.items():
        if text := case.about["outputs"].get(f"{stem}_{{k}}"):
            batch, label = (int(re.search(rf"\b{n}=(-?\d+)", text)[1]) for n in ("B", "label_B"))
            observed, _ = run(parts, torch.full((batch,), label), guided)
            expect_turns(case, stem, observed.tokens)


@torch.no_grad()
def both_halves(case: Case, parts: Parts, canvas: Canvas) -> list[Tensor]:
    """Return each scale's logits with and without label: unguided, we compute one half only."""
    span, guide = parts.schedule[:], Guide(scale=1, rows=2)
    condition = Condition(case.inputs["label"]).spread(guide.rows)
    h = parts.model(guide.spread(canvas.read(span)), span, condition)
    return list(plain_logits(parts.model, h, span).split(span.sizes, dim=1))


def recorded_noise(case: Case, parts: Parts) -> Recorded:
    return Recorded([case.inputs[f"exp_{k}"] for k in range(len(parts.schedule))])


def check_sampled(case: Case) -> None:
    parts = case.build()
    rng = recorded_noise(case, parts)
    observed, canvases = run(parts, case.inputs["label"], settings(case), rng)
    expect_turns(case, "probs", [shaped.probs.flatten(0, 1) for shaped in observed.shaped])
    expect_turns(case, "idx", observed.tokens)
    expect_turns(case, "fhat", [canvas.latent for canvas in canvases])


def check_smooth(case: Case) -> None:
    parts = case.build()
    rng = recorded_noise(case, parts)
    observed, canvases = run(parts, case.inputs["label"], settings(case), rng)
    expect_turns(case, "cfg_logits", observed.guided)
    expect_turns(
        case, "filtered_logits", [shaped.logits.clamp(min=EXCLUDED) for shaped in observed.shaped]
    )
    for k, tokens in enumerate(observed.tokens):
        case.expect(f"h_{k}", grid(parts.tokenizer.embed(tokens), parts.schedule, k))
    expect_turns(case, "fhat", [canvas.latent for canvas in canvases])


def check_filters(case: Case) -> None:
    prediction = CategoricalPrediction(case.inputs["logits"])
    tied = case.about["rows_with_ties"]
    for i, setting in enumerate(case.config["settings"]):
        shaped = prediction.shaped(Sampling(**setting))
        for name, actual in {
            f"probs_{i}": shaped.probs[0],
            f"masked_logits_{i}": shaped.logits[0].clamp(min=EXCLUDED),
        }.items():
            # Which of several equals stays depends on how they are sorted, how many does not.
            for rows in (actual, case.outputs[name]):
                rows[tied] = rows[tied].sort(dim=-1).values
            case.expect(name, actual)


class Given(Wrapped):
    """A tokenizer that encodes every image as the recorded one, whose pixels were not recorded."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[Tensor]) -> None:
        super().__init__(tokenizer)
        self.given = tokens

    def encode(self, *_: object) -> list[Tensor]:
        return self.given


def check_edit(case: Case) -> None:
    parts = case.build()
    schedule, tokenizer = parts.schedule, parts.tokenizer
    source = [case.inputs[f"tok_{k}"] for k in range(len(schedule))]
    image, box = torch.zeros(3, 8, 8), case.call["box_y0x0y1x1"]
    for tag in case.call["tags"]:
        edit = (outpaint if tag == "outpaint" else inpaint)(image, box=box)
        labels = case.inputs[f"label_{tag}"]
        assert isinstance(edit, Painting)
        canvas = edit.around(Given(tokenizer, source), schedule).blank(len(labels), schedule)
        assert isinstance(canvas, Kept)
        hole = edit.framed(Frame(schedule.grids[-1], tokenizer.factor))[1]
        if hole.all():  # an edit then lets go of the first scale, the original does not
            stays = torch.zeros(schedule.grids[-1])
            canvas = replace(canvas, keep=keep_masks(stays, schedule))
        keep = canvas.keep
        case.expect(f"mask_{tag}", keep[-1].view(schedule.grids[-1]))
        observed, canvases = run(parts, labels, settings(case), canvas=canvas)
        for k, drawn in enumerate(observed.tokens):
            if f"force_{tag}_{k}" in case.outputs:
                case.expect(f"force_{tag}_{k}", keep[k].view(schedule.grids[k]))
            case.expect(f"idx_{tag}_{k}", drawn)
            written = torch.where(keep[k], source[k], drawn)
            case.expect(f"h_{tag}_{k}", grid(tokenizer.embed(written), schedule, k))
        case.expect(f"fhat_{tag}", canvases[-1].latent)
        case.expect(f"img_{tag}", tokenizer.decode(canvases[-1]))
