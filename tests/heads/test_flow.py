"""The flow head: samples and losses as word by word, noise by streams, and nothing done twice."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.heads import plain_flow
from var.errors import UserError
from var.heads.base import check_settings
from var.heads.flow import Flow
from var.heads.flow_net import FlowNet
from var.random import Rng
from var.sampling import Guide, Sampling
from var.schedule import Schedule, Span

CHANNELS, SOURCE, EXTENT = 3, 12, 8.0
SCHEDULE = Schedule.scales([1, 2, (2, 3)])
LAST = SCHEDULE[2:]
GUIDED = Guide(scale=2.5, rows=2)
SEEDS = [4, 5, 6]
KINDS = pytest.mark.parametrize("cross", [False, True], ids=["spatial", "cross"])


def flow(cross: bool, **changes: int) -> Flow:
    sizes = {"channels": CHANNELS, "source": SOURCE, "width": 16, "depth": 2, "heads": 2, **changes}
    net = FlowNet(**sizes, cross=cross, extent=EXTENT)
    return Flow(tiny.shaken(net, scale=0.2)).eval()  # type: ignore[arg-type]


def features(rows: int, span: Span = LAST) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(rows, len(span), SOURCE, generator=rng)


def drawn(
    head: Flow, h: Tensor, span: Span, guide: Guide, sampling: Sampling, rng: Rng | None
) -> Tensor:
    with torch.no_grad():
        return head(h, span, guide).shaped(sampling).sample(rng)


def noted(module: nn.Module, note: Callable[[Tensor], None]) -> None:
    """Tell of every input of a module."""
    module.register_forward_pre_hook(lambda _, inputs: note(inputs[0]))


@torch.no_grad()
@KINDS
@pytest.mark.parametrize(("solver", "steps"), [("euler", 5), ("midpoint", 3), ("heun", 3)])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.65), (0.3, 0.7)])
def test_guided_samples_are_those_of_the_plain_loop(
    cross: bool, solver: str, steps: int, interval: tuple[float, float]
) -> None:
    head, h = flow(cross), features(6)
    sampling = Sampling(steps=steps, solver=solver, interval=interval)
    ours = drawn(head, h, LAST, GUIDED, sampling, Rng(SEEDS))
    theirs = plain_flow.followed(
        head.net, Rng(SEEDS).normal(6, CHANNELS), h, LAST,
        scale=GUIDED.scale, interval=interval, solver=solver, steps=steps,
    )  # fmt: skip
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@KINDS
@pytest.mark.parametrize("span", [SCHEDULE[:1], SCHEDULE[1:2], LAST], ids=len)
def test_published_steps_are_those_of_the_plain_loop_at_every_scale(
    cross: bool, span: Span
) -> None:
    head, h = flow(cross), features(6, span)
    sampling = Sampling(steps=9, solver="published", interval=0.9)
    ours = drawn(head, h, span, GUIDED, sampling, Rng(SEEDS))
    theirs = plain_flow.followed(
        head.net, Rng(SEEDS).normal(len(span), CHANNELS), h, span,
        scale=GUIDED.scale, interval=(0.0, 0.9), solver="published", steps=9,
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@KINDS
@pytest.mark.parametrize("guide", [Guide(scale=1, rows=1), Guide(scale=1, rows=2)], ids=["1", "2"])
def test_without_guidance_a_null_half_changes_nothing(cross: bool, guide: Guide) -> None:
    head, h = flow(cross), features(6)
    ours = drawn(head, h[: 3 * guide.rows], LAST, guide, Sampling(steps=4), Rng(SEEDS))
    theirs = plain_flow.followed(
        head.net, Rng(SEEDS).normal(6, CHANNELS), h, LAST,
        scale=1.0, interval=(0.0, 1.0), solver="euler", steps=4,
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def rows_evaluated(cross: bool, guide: Guide, sampling: Sampling) -> tuple[list[int], list[int]]:
    """Return the rows of features that were met, and those of each evaluation, of three images."""
    head, met, asked = flow(cross), list[int](), list[int]()
    noted(head.net.condition, lambda z: met.append(len(z)))
    noted(head.net.outlet, lambda h: asked.append(len(h)))
    drawn(head, features(6), LAST, guide, sampling, None)
    return met, asked


@KINDS
def test_null_rows_are_evaluated_at_guided_times_only(cross: bool) -> None:
    half = Sampling(steps=50, solver="published", interval=0.7)
    assert rows_evaluated(cross, GUIDED, half) == ([6], 15 * [3] + 35 * [6])
    some = Sampling(steps=24, solver="published", interval=0.9)
    assert rows_evaluated(cross, GUIDED, some) == ([6], 2 * [3] + 22 * [6])
    middle = Sampling(steps=4, solver="midpoint", interval=(0.3, 0.7))
    assert rows_evaluated(cross, GUIDED, middle) == ([6], [3, 3, 3, 6, 6, 6, 3, 3])


@KINDS
def test_null_rows_that_weigh_nothing_are_never_evaluated(cross: bool) -> None:
    unguided = Guide(scale=1, rows=2)
    assert rows_evaluated(cross, unguided, Sampling(steps=3)) == ([3], 3 * [3])
    never = Sampling(steps=3, interval=(0.95, 0.99))
    assert rows_evaluated(cross, GUIDED, never) == ([3], 3 * [3])


@KINDS
def test_what_does_not_depend_on_tokens_is_computed_once(cross: bool) -> None:
    head, calls = flow(cross), dict[str, int]()
    once = ["time", "condition"]
    once += [f"blocks.{i}.cross.kv" for i in range(2)] * cross
    once += [f"blocks.{i}.attention_modulation" for i in range(2)] * cross
    for name in [*once, "inlet"]:
        counted = head.net.get_submodule(name)
        noted(counted, lambda _, name=name: calls.update({name: calls.get(name, 0) + 1}))
    drawn(head, features(6), LAST, GUIDED, Sampling(steps=7), Rng(SEEDS))
    assert calls == {**dict.fromkeys(once, 1), "inlet": 7}


@KINDS
def test_halves_part_no_sooner_than_they_must(cross: bool) -> None:
    head, rows = flow(cross), list[int]()
    first, second = (block.attention.qkv for block in head.net.blocks)
    for part in (head.net.inlet, first, second):
        noted(part, lambda x: rows.append(len(x)))
    drawn(head, features(6), LAST, GUIDED, Sampling(steps=1), None)
    assert rows == ([3, 3, 6] if cross else [3, 6, 6])


@KINDS
def test_an_image_is_drawn_the_same_alone_and_in_a_batch(cross: bool) -> None:
    head, h, sampling = flow(cross), features(6), Sampling(steps=3, temperature=0.8)
    together = drawn(head, h, LAST, GUIDED, sampling, Rng(SEEDS))
    for i, seed in enumerate(SEEDS):
        alone = drawn(head, h[[i, i + 3]], LAST, GUIDED, sampling, Rng([seed]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_a_seed_decides_the_tokens() -> None:
    head, h = flow(cross=True), features(3)
    guide, sampling = Guide(scale=1, rows=1), Sampling(steps=2)
    tokens, again, other = (
        drawn(head, h, LAST, guide, sampling, Rng(seeds)) for seeds in (SEEDS, SEEDS, [4, 5, 7])
    )
    assert torch.equal(tokens, again) and torch.equal(tokens[:2], other[:2])
    assert (tokens[2] - other[2]).abs().max() > 0.1


@torch.no_grad()
def test_temperature_multiplies_the_noise() -> None:
    head, guide = flow(cross=False), Guide(scale=1, rows=1)
    still = Sampling(steps=3, temperature=0.25)
    for weight in (head.net.outlet.weight, head.net.outlet.bias):
        weight.zero_()  # nothing moves
    tokens = drawn(head, features(3), LAST, guide, still, Rng(SEEDS))
    torch.testing.assert_close(tokens, 0.25 * Rng(SEEDS).normal(6, CHANNELS))


@torch.no_grad()
@KINDS
def test_without_streams_the_mean_of_the_noise_is_followed(cross: bool) -> None:
    head, h = flow(cross), features(6)
    ours = [drawn(head, h, LAST, GUIDED, Sampling(steps=4, temperature=t), None) for t in (1, 9)]
    theirs = plain_flow.followed(
        head.net, torch.zeros(3, 6, CHANNELS), h, LAST,
        scale=GUIDED.scale, interval=(0.0, 1.0), solver="euler", steps=4,
    )  # fmt: skip
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(*ours)


def test_every_group_may_have_steps_of_its_own() -> None:
    sampling, taken = Sampling(steps=[1, 4, 6]), list[int]()
    for k in range(len(SCHEDULE)):
        head, span, asked = flow(cross=True), SCHEDULE[k : k + 1], list[int]()
        noted(head.net.outlet, lambda h, asked=asked: asked.append(len(h)))
        drawn(head, features(3, span), span, Guide(scale=1, rows=1), sampling.at(k), None)
        taken.append(len(asked))
    assert taken == [1, 4, 6]


def test_a_solver_that_is_not_there_is_named_and_so_are_settings_that_mean_nothing() -> None:
    head = flow(cross=False)
    with pytest.raises(UserError, match="unknown solver 'rk4'"):
        drawn(head, features(6), LAST, GUIDED, Sampling(solver="rk4"), None)
    check_settings(head, ["guidance", "temperature", "steps", "solver", "interval"], Sampling())
    with pytest.raises(UserError, match="top_k, top_p would change nothing: .* heeds guidance"):
        check_settings(head, ["top_p", "steps", "top_k"], Sampling())


@torch.no_grad()
@KINDS
def test_half_precision_weights_stay_near_float32(cross: bool) -> None:
    exact, rounded = flow(cross), flow(cross).bfloat16()
    tokens, near = (
        drawn(head, features(6), LAST, GUIDED, Sampling(steps=4), Rng(SEEDS))
        for head in (exact, rounded)
    )
    assert near.dtype == torch.float32
    assert (near - tokens).square().mean() < 0.05**2 * tokens.square().mean()


def test_heads_of_64_channels_are_the_rule() -> None:
    for width, heads in ((1024, 16), (1536, 24), (192, 3), (24, 1)):
        with torch.device("meta"):
            net = FlowNet(channels=4, source=8, width=width, depth=1, cross=True)
        assert net.blocks[0].attention.heads == net.blocks[0].cross.heads == heads
        assert net.per_head == width // heads


def batch(span: Span) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(2)
    return features(3, span), torch.randn(3, len(span), CHANNELS, generator=rng)


@torch.no_grad()
@KINDS
@pytest.mark.parametrize("groups", [slice(None), slice(0, 2), slice(1, 3), slice(2, 3)])
def test_the_loss_is_that_of_each_scale_weighted_by_its_size(cross: bool, groups: slice) -> None:
    head, span = flow(cross), SCHEDULE[groups]
    h, tokens = batch(span)
    rng = Rng(SEEDS)
    t, noise = rng.uniform(len(span.sizes)), rng.normal(len(span), CHANNELS)
    each = plain_flow.losses(head.net, h, tokens, span, t, noise)
    weights = torch.tensor(span.sizes) / span.sizes[-1]
    ours = head.loss(h, tokens, span, Rng(SEEDS))
    assert ours.shape == (3, len(span)) and ours.dtype == torch.float32
    torch.testing.assert_close(ours.mean(), (each * weights).sum(dim=1).mean())
    per_scale = [part.mean(dim=1) for part in ours.split(span.sizes, dim=1)]
    torch.testing.assert_close(torch.stack(per_scale, dim=1), each * len(span) / span.sizes[-1])


def test_scales_have_times_of_their_own() -> None:
    head, seen = flow(cross=False), list[Tensor]()
    noted(head.net.time, seen.append)
    head.loss(*batch(SCHEDULE[:]), SCHEDULE[:], Rng(SEEDS))
    (t,) = seen
    assert t.shape == (3, 3) and len(t.unique()) == 9
    assert torch.equal(t, Rng(SEEDS).uniform(3))


@torch.no_grad()
@KINDS
def test_the_loss_of_an_image_does_not_depend_on_its_neighbours(cross: bool) -> None:
    head, (h, tokens) = flow(cross), batch(SCHEDULE[:])
    together = head.loss(h, tokens, SCHEDULE[:], Rng(SEEDS))
    for i, seed in enumerate(SEEDS):
        one = slice(i, i + 1)
        alone = head.loss(h[one], tokens[one], SCHEDULE[:], Rng([seed]))
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


@KINDS
def test_groups_of_a_span_do_not_see_each_other(cross: bool) -> None:
    net, span = flow(cross).net, SCHEDULE[:]
    h, x = (tensor.requires_grad_() for tensor in batch(span))
    t = torch.tensor([[0.1, 0.5, 0.9]] * 3)
    v = net(x, net.clock(t), net.meet(h, span))
    for k in range(len(span.sizes)):
        here = SCHEDULE[k : k + 1].positions
        gradients = torch.autograd.grad(v[:, here].square().sum(), (x, h), retain_graph=True)
        for gradient in gradients:
            reached = gradient.abs().sum(dim=(0, 2)) > 0
            assert reached[here].all() and reached.sum() == here.stop - here.start


@KINDS
def test_gradients_are_finite_in_half_precision_even_of_large_features(cross: bool) -> None:
    head, (h, tokens) = flow(cross), batch(SCHEDULE[:])
    h = (1e3 * h).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        each = head.loss(h, tokens, SCHEDULE[:], Rng(SEEDS))
    assert each.dtype == torch.float32
    each.mean().backward()
    for gradient in (h.grad, *(weight.grad for weight in head.parameters())):
        assert gradient is not None and gradient.isfinite().all()


MEANS, SPREAD = torch.tensor([[1.5, 0.5], [-1.5, -0.5]]), 0.5
FIELD = Schedule.scales([4])[:]


def two_kinds(images: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return features that tell two kinds of images apart, and tokens N(mean, SPREAD^2) of each."""
    kind = torch.arange(images) % 2
    noise = torch.randn(images, len(FIELD), 2, generator=rng)
    sign = (1.0 - 2 * kind)[:, None, None]
    return sign.expand(-1, len(FIELD), SOURCE), MEANS[kind][:, None] + SPREAD * noise


@KINDS
def test_training_finds_the_distribution_of_each_condition(cross: bool) -> None:
    torch.manual_seed(0)
    head = Flow(FlowNet(channels=2, source=SOURCE, width=16, depth=1, cross=cross))
    optimizer, steps = torch.optim.AdamW(head.parameters()), 200
    rng = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimizer.zero_grad()
        head.loss(*two_kinds(16, rng), FIELD, Rng.batch(100 * step, 16)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        h, tokens = two_kinds(400, rng)
        error = head.loss(h, tokens, FIELD, Rng.batch(10**6, 400)).mean()
    # At a time t the velocities of N(mean, s^2) vary by s^2 / ((1 - t)^2 s^2 + t^2): nobody can
    # have a smaller error, and over all times that is s pi / 2.
    assert 0.93 < error / (SPREAD * math.pi / 2) < 1.1
    alone, sampling = Guide(scale=1, rows=1), Sampling(steps=25)
    made = drawn(head, h[:32], FIELD, alone, sampling, Rng.batch(777_777, 32))
    for kind, mean in enumerate(MEANS):
        ours = made[kind::2].flatten(0, 1)
        bound = 4 * SPREAD / len(ours) ** 0.5
        torch.testing.assert_close(ours.mean(dim=0), mean, rtol=0, atol=bound)
        torch.testing.assert_close(ours.std(dim=0), torch.full((2,), SPREAD), rtol=0.2, atol=0)
