"""Checks of speculative Jacobi decoding, by kind of case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.golden_checks.case import Case, Excuse
from var.cache.dense import Dense
from var.condition import Condition
from var.decoding import verify
from var.decoding.guesses import GUESSERS, Known, point
from var.decoding.jacobi import Look, State
from var.decoding.jacobi_published import PublishedJacobi
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.decoding.verify import remainder
from var.heads.base import Prediction
from var.heads.categorical import CategoricalPrediction, filtered
from var.random import Rng
from var.sampling import Sampling
from var.schedule import Schedule
from var.systems import sjd
from var.tokenizers.chain import Chain
from var.tokenizers.tokenizer import Canvas


class Tape(Rng):
    """Recorded numbers in the place of random ones: (4, C) for each turn, and for the opening."""

    def __init__(self, turns: list[Tensor]) -> None:
        super().__init__([0])
        self.turns = iter(turns)

    def uniform(self, *shape: int) -> Tensor:
        """Return what was recorded for the next turn, (1, 4, C)."""
        numbers = next(self.turns)
        assert tuple(numbers.shape) == shape
        return numbers[None]


class Plain:
    """All of a tokenizer that the loop gets to see: ids are all that counts."""

    def blank(self, batch: int, schedule: Schedule) -> Chain:
        """Return an empty canvas."""
        return Chain.blank(batch, schedule, lambda ids: ids[..., None].float(), torch.device("cpu"))


class Turned(NamedTuple):
    """What was seen of a turn, as the original lays it out."""

    window: Tensor
    adv_tokens: Tensor
    p: Tensor
    q: Tensor | None
    residual: Tensor | None
    emitted: Tensor
    accepted_before: int


class Watched:
    """The released decoding; notes what is recorded of each turn."""

    def __init__(self, inner: PublishedJacobi) -> None:
        self.inner, self.turns, self.caches = inner, list[Turned](), inner.caches
        self.rest: Tensor | None = None
        plain = inner._rest

        def rest(p: Tensor, q: Tensor) -> Tensor:
            self.rest = plain(p, q)
            return self.rest

        inner._rest = rest  # type: ignore[method-assign]

    def begin(self, kind: Any = None) -> None:
        """Forget the last run."""
        self.inner.begin(kind)

    def propose(self, canvas: Canvas, rng: Rng | None) -> Any:
        """Return the next turn, noting the window."""
        turn = self.inner.propose(canvas, rng)
        self.canvas, self.draft = canvas, turn.draft
        return turn

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        """Return what is decided, noting how it came about."""
        state = self.inner.state
        assert state is not None
        q, before, slots = state.laws, state.done, len(state.span)
        looks = list[Look]()
        looked = self.inner._looked

        def look(prediction: Prediction, rng: Rng | None) -> Look:
            looks.append(looked(prediction, rng))
            return looks[-1]

        self.inner._looked, self.rest = look, None  # type: ignore[method-assign]
        tokens = self.inner.settle(prediction, rng)
        self.inner._looked = looked  # type: ignore[method-assign]
        emitted = torch.cat(tokens, dim=1)[0]
        self.turns.append(
            Turned(
                window=self.draft.seen[0, before : before + slots],
                adv_tokens=looks[0].drawn[0],
                p=looks[0].p[0],
                q=None if q is None else q[0, : slots - 1],
                residual=None if self.rest is None or len(emitted) == slots else self.rest[0, 0],
                emitted=emitted,
                accepted_before=before,
            )
        )
        return tokens


def decode(case: Case) -> None:
    """Compare a whole run, turn by turn."""
    parts, config = case.build(), case.config
    decoding = Watched(sjd.decoding(config, parts.model))  # type: ignore[arg-type]
    assert parts.schedule is not None
    tape = Tape(numbers(case, decoding.inner.vocabulary))
    for canvas in decide(
        Plain(),
        parts.schedule,
        condition(case),
        decoding,
        sampling(case),
        tape,  # type: ignore[arg-type]
    ):
        ids = canvas.ids  # type: ignore[attr-defined]
    case.expect("ids", ids)
    case.expect("nfe", torch.tensor(len(decoding.turns)))
    compare(case, decoding.turns[1:])
    if "plain_ids" in case.outputs:
        plain = Sequential(parts.model)  # type: ignore[arg-type]
        for canvas in decide(Plain(), parts.schedule, condition(case), plain, sampling(case)):  # type: ignore[arg-type]
            ids = canvas.ids  # type: ignore[attr-defined]
        case.expect("plain_ids", ids.int())


def compare(case: Case, turns: list[Turned]) -> None:
    """Compare what was noted of the turns after the prefill."""
    shape = case.outputs["p"].shape

    def laid(name: str, fill: float) -> Tensor:
        out = torch.full_like(case.outputs[name], fill)
        for k, turn in enumerate(turns):
            value = getattr(turn, name)
            if value is not None:
                out[k][tuple(slice(n) for n in value.shape)] = value
        return out

    assert len(turns) == shape[0]
    for name in ("window", "adv_tokens", "emitted"):
        case.expect(name, laid(name, -1))
    case.expect("p", laid("p", 0))
    if case.config["jacobi"]["prefix_token_sampler_scheme"] != "jacobi":
        q = case.outputs["q"].clone()  # slot 0 is decided, and its law of no consequence
        for k, turn in enumerate(turns):
            if turn.q is not None:
                q[k, 1 : 1 + len(turn.q)] = turn.q
        case.expect("q", q)
    if "residual" in case.outputs:
        case.expect("residual", laid("residual", 0))
    case.expect("win_len", torch.tensor([len(turn.window) for turn in turns]))
    case.expect("matched", torch.tensor([len(turn.emitted) for turn in turns]))
    case.expect("accepted_before", torch.tensor([turn.accepted_before for turn in turns]))


def numbers(case: Case, vocabulary: int) -> list[Tensor]:
    """Return the recorded numbers of the opening, the prefill and each turn, (4, C) each."""
    draws = case.inputs
    width = draws["u_adv"].shape[1]
    size, moved = case.outputs["win_len"].tolist(), case.outputs["matched"].tolist()
    fills = (draws["draft_fill"].float() + 0.5) / vocabulary
    prefill = torch.zeros(4, width)
    prefill[0, 0] = draws["u_first"]
    turns = [torch.zeros(4, width), prefill]
    for k in range(len(size)):
        turn = torch.zeros(4, width)
        turn[0] = draws["u_adv"][k].clamp(min=0)
        if "r_accept" in draws:
            turn[1, :-1] = draws["r_accept"][k, 1:].clamp(min=0)
            turn[3] = draws["u_resample"][k].clamp(min=0)
        if k + 1 < len(size):  # what the next window is filled with, behind what is carried
            carried = min(size[k] - moved[k], size[k + 1] - 1)
            turn[2, carried:] = fills[k + 1, : width - carried].clamp(min=0)
        turns.append(turn)
    return turns


def condition(case: Case) -> Condition:
    cond = case.inputs["cond"]
    if cond.ndim == 1:
        return Condition(cond)
    return Condition(torch.zeros(len(cond), dtype=torch.int64), cond, case.inputs["left_mask"] > 0)


def sampling(case: Case) -> Sampling:
    config, first = case.config, case.config["first_token"]
    rest = config["model"]["block_size"] - 1
    top_p = (first["top_p"], *[config["image_top_p"]] * rest)
    return Sampling(
        guidance=(config["jacobi"]["guidance_scale"],) * 2,
        temperature=(first["temperature"], *[1.0] * rest),
        top_k=(first["top_k"], *[config["image_top_k"]] * rest),
        top_p=tuple(map(sjd.published_top_p, top_p)),
    )


def accept_rounds(case: Case) -> None:
    """Compare single rounds of the test."""
    x, filters = case.inputs, case.config["resample_processors"] or {}
    again = {"top_k": filters.get("top_k", 0), "top_p": filters.get("top_p", 0.0)}
    guess, q, p = x["draft_tokens"][:, 1:], x["q"][:, 1:], x["p"][:, :-1]
    stays = verify.stays(guess, p, q, x["r"][:, 1:])
    edge = verify.run_length(stays)
    rows = torch.arange(len(edge))
    last = edge.clamp(max=guess.shape[1] - 1)
    rest = filtered(remainder(p, q)[rows, last].log(), **again).softmax(dim=-1)
    refuted = edge < guess.shape[1]
    z = verify.draw(rest, x["u_resample"].clamp(min=0))
    tokens = x["adv_tokens"].clone()
    behind = torch.arange(guess.shape[1]) < edge[:, None]
    tokens[:, :-1] = torch.where(behind, guess, tokens[:, :-1])
    tokens[rows[refuted], edge[refuted]] = z[refuted]
    scores = x["p"].clone()
    scores[:, :-1] = torch.where(behind[..., None], q, scores[:, :-1])
    case.expect("first_rejected", edge + 1)
    case.expect("tokens", tokens)
    case.expect("scores", scores)
    case.expect("residual", rest * refuted[:, None])


def accept_batch(case: Case) -> None:
    """Compare a turn of a batch that goes ahead as its slowest row does."""
    x, window, vocabulary = case.inputs, case.config["window"], case.config["vocab"]
    batch = case.config["batch"]
    head = SimpleNamespace(vocabulary=vocabulary)
    model: Any = SimpleNamespace(head=head, new_cache=lambda kind: Dense(1))
    decoding = PublishedJacobi(model, window, first=0, last=3 * window)
    schedule = Schedule.raster((2, window))
    tokens = torch.zeros(batch, 2 * window, dtype=torch.int64)
    tokens[:, 1:window] = x["draft_tokens"][:, 1:]  # behind the token that is decided
    decoding.state = State(
        schedule,
        levels=schedule[:].levels(),
        starts=torch.tensor(schedule.starts),
        done=1,
        own=torch.ones(batch, dtype=torch.int64),
        ahead=0,
        slots=window,
        tokens=tokens,
        places=window,
        laws=torch.cat([x["q"][:, 1:], torch.zeros_like(x["q"][:, :1])], dim=1),
    )
    uniform = torch.zeros(batch, 4, window)
    uniform[:, 1, :-1] = x["r"][:, 1:]
    uniform[:, 3] = x["u_resample"].clamp(min=0)[:, None]
    tape: Any = SimpleNamespace(uniform=lambda *shape: uniform)
    looked = decoding._looked

    def look(prediction: Prediction, rng: Rng | None) -> Look:
        return looked(prediction, rng)._replace(drawn=x["adv_tokens"])

    decoding._looked = look  # type: ignore[method-assign]
    emitted = decoding.settle(CategoricalPrediction(x["p"].log()), tape)
    rest = slice(decoding.state.done, 1 + window)
    stays = verify.stays(x["draft_tokens"][:, 1:], x["p"][:, :-1], x["q"][:, 1:], x["r"][:, 1:])
    case.expect("first_rejected", verify.run_length(stays) + 1)
    case.expect("matched", torch.tensor(len(emitted)))
    case.expect("emitted", torch.cat(emitted, dim=1))
    case.expect("next_drafts", decoding.state.tokens[:, rest])
    assert decoding.state.laws is not None
    case.expect("next_draft_probs", decoding.state.laws[:, : window - len(emitted)])


@torch.no_grad()
def exact_prefix_law(case: Case) -> None:
    """Compare the probability of every beginning of an image, by teacher forcing."""
    model: Any = case.build().model
    config, n = case.config, case.config["prefix"]
    each = torch.cartesian_prod(*[torch.arange(config["model"]["vocab_size"])] * n)
    settings = Sampling(
        guidance=(config["cfg_scale"],) * 2,
        temperature=config["temperature"],
        top_k=config["top_k"],
        top_p=sjd.published_top_p(config["top_p"]),
    )
    span = model.schedule[:n]
    canvas = Plain().blank(len(each), model.schedule).write(*each.split(1, dim=1))
    guide = settings.guide_over(span)
    labels = Condition(case.inputs["label"].expand(len(each))).spread(guide.rows)
    h = model(guide.spread(canvas.read(span)), span, labels)
    probs = model.head(h, span, guide).shaped(settings).probs
    case.expect("sequences", each)
    case.expect("prob", probs.gather(2, each[..., None])[..., 0].prod(dim=1))


def draft_init(case: Case) -> None:
    """Compare first guesses, on a raster as wide as the original's rows with their ends."""
    x, config = case.inputs, case.config
    before = config["prefill"]  # tokens of what comes before the image
    known = torch.cat([x["input_ids"], x["additional_tokens"]], dim=1)[:, before:]
    count, vocabulary = known.shape[1], config["vocab"]
    cells = torch.arange(count, count + x["random_fill"].shape[1])[None]
    law = torch.cat([x["input_scores"], x["additional_scores"]], dim=1)[:, -1:]
    facts = Known(known, torch.tensor([count]), law, (100, config["row_stride"]))
    uniform = (x["random_fill"] + 0.5) / vocabulary
    for theirs, ours in (("repeat_horizon", "left"), ("sample_horizon", "likeliest")):
        ids, laws, there = GUESSERS[ours](facts, cells, uniform, vocabulary)
        ids = torch.where(there, ids, x["random_fill"])
        laws = torch.where(there[..., None], laws, point(x["random_fill"], vocabulary))
        case.expect(f"{theirs}_tokens", ids)
        case.expect(f"{theirs}_probs", laws)
    ids, *_ = GUESSERS["random"](facts, cells, uniform, vocabulary)
    case.expect("random_tokens", ids)
    case.expect("random_probs", point(ids, vocabulary))


def window_filters(case: Case) -> None:
    """Compare the filters over several positions at once."""
    logits = case.inputs["logits"]
    for k, combo in enumerate(case.config["combos"]):
        top_p = sjd.published_top_p(combo["top_p"])
        probs = filtered(logits, min(combo["top_k"], logits.shape[-1]), top_p).softmax(dim=-1)
        case.expect(f"probs{k}", probs)


CHECKS = {
    "decode": decode,
    "accept_rounds": accept_rounds,
    "accept_batch": accept_batch,
    "draft_init": draft_init,
    "exact_prefix_law": exact_prefix_law,
    "eol_positions": lambda case: None,
    "window_filters": window_filters,
}
_LINES = "ends of lines are tokens of models that are not among ours: ours have rows by geometry"
NOT_APPLICABLE = [
    *(Excuse("eol_positions", output, _LINES) for output in ("contains", "positions")),
    Excuse(
        "decode",
        "q",
        "guesses that are matched need no laws, so none are kept",
        lambda case: case.config["jacobi"]["prefix_token_sampler_scheme"] == "jacobi",
    ),
]
