import math

import pytest
import torch
from torch import Tensor

from tests import tiny
from var.models.var import VAR
from var.nn.adaln import Modulation
from var.random import Rng
from var.sampling import Condition, Guide
from var.schedule import Schedule

VARIANTS = pytest.mark.parametrize(
    "changes",
    [{}, {"l2_norm": False}, {"shared_adaln": True}, {"ladder": [(1, 2), 2, (2, 3)]}],
    ids=["cosine", "fixed", "shared", "wide start"],
)
PUBLISHED = {"vocabulary": 4096, "channels": 32, "classes": 1000}


def features(model: VAR, x: Tensor, labels: list[int]) -> Tensor:
    return model(x, model.schedule[:], Condition(torch.tensor(labels)))


def canvas_vectors(model: VAR, rows: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(rows, model.schedule.starts[-1], tiny.CHANNELS, generator=rng)


@VARIANTS
def test_no_position_sees_a_later_group_and_all_see_the_earlier(changes: dict) -> None:
    model = tiny.model(**changes)
    schedule = model.schedule
    x = canvas_vectors(model).requires_grad_()
    h = features(model, x, [0, 1])
    for k in range(len(schedule)):
        here = schedule[k : k + 1].positions
        (grad,) = torch.autograd.grad(h[:, here].sum(), x, retain_graph=True)
        reach = grad.abs().sum(dim=(0, 2)) > 0
        first = schedule.sizes[0]  # the class stands in place of x there
        assert reach[first : here.stop].all() and not reach[here.stop :].any()
        assert not reach[:first].any()


@VARIANTS
def test_images_do_not_see_each_other(changes: dict) -> None:
    model = tiny.model(**changes)
    x = canvas_vectors(model, rows=3)
    together = features(model, x, [0, 1, 2])
    for i in range(3):
        alone = features(model, x[i : i + 1], [i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_minus_one_and_the_number_of_classes_are_the_null_class() -> None:
    model = tiny.model()
    x = canvas_vectors(model)
    null = features(model, x, [-1, -1])
    assert torch.equal(null, features(model, x, [tiny.CLASSES] * 2))
    assert not torch.allclose(null, features(model, x, [tiny.CLASSES - 1] * 2))


@pytest.mark.parametrize("label", [-2, tiny.CLASSES + 1])
def test_labels_out_of_range_are_refused(label: int) -> None:
    model = tiny.model()
    with pytest.raises(
        ValueError, match=rf"labels must lie in -1..{tiny.CLASSES}, got \[0, {label}\]"
    ):
        features(model, canvas_vectors(model), [0, label])


def test_another_ladder_is_refused() -> None:
    model, other = tiny.model(), Schedule.scales([1, 2, 4])
    with pytest.raises(ValueError, match="built for the ladder"):
        model(canvas_vectors(model)[:, :21], other[:], Condition(torch.tensor([0, 1])))


def test_a_ladder_of_the_same_sizes_is_still_another() -> None:
    model, other = tiny.model(), Schedule.scales([1, (4, 1), 3, 4])
    with pytest.raises(ValueError, match="built for the ladder"):
        model(canvas_vectors(model), other[:], Condition(torch.tensor([0, 1])))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide the width 32"):
        tiny.model(heads=5)


@VARIANTS
def test_bfloat16_weights_stay_near_float32(changes: dict) -> None:
    exact, rounded = tiny.model(**changes), tiny.model(**changes).bfloat16()
    x = canvas_vectors(exact)
    h, guess = features(exact, x, [0, 1]), features(rounded, x, [0, 1])
    assert guess.dtype == torch.bfloat16
    error = (guess.float() - h).square().mean().sqrt() / h.square().mean().sqrt()
    assert error < 0.03  # bfloat16 has 8 bits: 0.004 per rounding


@VARIANTS
def test_autocast_stays_near_float32_and_trains(changes: dict) -> None:
    model = tiny.model(**changes).train()
    x, tokens = (
        canvas_vectors(model),
        torch.randint(tiny.VOCABULARY, (2, model.schedule.starts[-1])),
    )
    h = features(model, x, [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        guess = features(model, x, [0, 1])
        loss = model.head.loss(guess, tokens, model.schedule[:], Rng([0, 1]))
    error = (guess.float() - h).square().mean().sqrt() / h.square().mean().sqrt()
    assert error < 0.03 and loss.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_learned_scale_stops_at_100() -> None:
    model = tiny.model(depth=1)
    x = canvas_vectors(model)
    log = model.blocks[0].attention.scale.log.data
    log.fill_(math.log(100))
    at_limit = features(model, x, [0, 1])
    log.fill_(9.0)
    assert torch.equal(features(model, x, [0, 1]), at_limit)
    log.fill_(1.0)
    assert not torch.allclose(features(model, x, [0, 1]), at_limit)


def test_stochastic_depth_acts_in_training_only_and_on_whole_rows() -> None:
    model = tiny.model(drop_path=0.5)
    plain = tiny.model()
    x = canvas_vectors(model)
    assert torch.equal(features(model, x, [0, 1]), features(plain, x, [0, 1]))
    torch.manual_seed(0)
    branches: list[Tensor] = []
    model.train().blocks[-1].path.register_forward_hook(lambda *args: branches.append(args[2]))
    for _ in range(8):
        features(model, x, [0, 1])
    dropped = [bool((row == 0).all()) for branch in branches for row in branch]
    assert any(dropped) and not all(dropped)


@pytest.mark.parametrize("shared", [False, True])
def test_new_weights_have_the_published_sizes(shared: bool) -> None:
    torch.manual_seed(0)
    width, depth = 96, 2
    model = VAR(
        depth=depth, width=width, heads=4, ladder=[1, 2], shared_adaln=shared, init_gate=0.01,
        init_modulation=0.4, init_head=0.1, **{**PUBLISHED, "vocabulary": 64, "classes": 9},
    )  # fmt: skip
    std = (3 * width) ** -0.5
    block = model.blocks[0]
    sizes = {
        block.attention.qkv.weight: std,
        block.attention.proj.weight: std / (2 * depth) ** 0.5,
        block.mlp.rise.weight: std,
        block.mlp.fall.weight: std / (2 * depth) ** 0.5,
        model.stem.linear.weight: std,
        model.stem.positions: std,
        model.modulation.weight: std * 0.4,
        model.head.linear.weight: std * 0.1,
    }
    if shared:
        sizes[block.modulation.table[:2]] = width**-0.5 * 0.01
        sizes[block.modulation.table[2:]] = width**-0.5 * 0.4
        assert isinstance(model.shared, Modulation)
        sizes[model.shared.weight] = std
    else:
        sizes[block.modulation.weight[: 2 * width]] = std * 0.01
        sizes[block.modulation.weight[2 * width :]] = std * 0.4
    for weight, expected in sizes.items():
        assert weight.std().item() == pytest.approx(expected, rel=0.2)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert all((bias == 0).all() for bias in biases)
    assert block.attention.scale.log.tolist() == pytest.approx([math.log(4)] * 4)


def test_logits_take_part_in_guidance_row_by_row() -> None:
    model = tiny.model()
    x, span = canvas_vectors(model, rows=4), model.schedule[:]
    h = features(model, x, [0, 1, -1, -1])
    both = model.head(h, span, Guide(scale=1, rows=1)).logits
    guided = model.head(h, span, Guide(scale=3, rows=2)).logits
    torch.testing.assert_close(guided, both[2:] + 3 * (both[:2] - both[2:]))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_block_compiles_in_one_piece() -> None:
    model, compiled = tiny.model(depth=1), tiny.model(depth=1)
    torch.compiler.reset()
    compiled.blocks[0].compile(backend="eager", fullgraph=True)
    x = canvas_vectors(model)
    with torch.no_grad():
        torch.testing.assert_close(features(compiled, x, [0, 1]), features(model, x, [0, 1]))
