"""Cross-entropy by chunks: the same losses and gradients, and never all logits."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from var.heads.categorical import Categorical
from var.nn.cross_entropy import cross_entropy
from var.nn.linear import Linear
from var.random import Rng
from var.schedule import Schedule

V, D = 11, 6


def drawn(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (2, 7, D), ids and weights (2, 7) of the losses."""
    rng = torch.Generator().manual_seed(0)
    h = torch.randn(2, 7, D, generator=rng, dtype=dtype).requires_grad_()
    return h, torch.randint(V, (2, 7), generator=rng), torch.rand(2, 7, generator=rng, dtype=dtype)


def chunked(linear: nn.Module, h: Tensor, ids: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the losses by chunks of three positions."""
    return cross_entropy(linear, h, ids, vocabulary=V, label_smoothing=smoothing, chunk=3 * 4 * V)


def whole(linear: nn.Module, h: Tensor, ids: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the losses from all logits."""
    z = linear(h).float().transpose(1, 2)
    return F.cross_entropy(z, ids, reduction="none", label_smoothing=smoothing)


class Adapted(nn.Module):
    """A linear map with something of low rank on top, as fine-tuning has it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.down = Linear(D, V), nn.Linear(D, 2)
        self.drop, self.up = nn.Dropout(0.5), nn.Linear(2, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def gradients(losses: Callable[..., Tensor], linear: nn.Module, smoothing: float) -> list[Tensor]:
    h, ids, weights = drawn()
    loss = (losses(linear, h, ids, smoothing) * weights).sum()
    return [loss, *torch.autograd.grad(loss, [h, *linear.parameters()])]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("make", [lambda: Linear(D, V), lambda: Linear(D, V, bias=False), Adapted])
def test_losses_and_gradients_are_those_of_all_logits(
    make: Callable[[], nn.Module], smoothing: float
) -> None:
    torch.manual_seed(0)
    linear = make()
    ours, theirs = (gradients(way, linear, smoothing) for way in (chunked, whole))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_gradients_are_exact() -> None:
    h, ids, _ = drawn(torch.double)
    linear = Linear(D, V).double()
    assert torch.autograd.gradcheck(lambda h: chunked(linear, h, ids, 0.1), h)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_product_alone(dtype: torch.dtype) -> None:
    linear = Linear(D, V)
    with torch.autocast("cpu", dtype):
        ours, theirs = (gradients(way, linear, 0.1) for way in (chunked, whole))
    assert ours[0].dtype == torch.float32
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operator returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_more_than_a_chunk_of_logits_is_ever_there() -> None:
    h, ids, _ = drawn()
    for way, most in ((chunked, 2 * 7 * D), (whole, 2 * 7 * V)):
        with Largest() as largest:
            way(Linear(D, V), h, ids).mean().backward()
        assert largest.numel == most


def test_compiled_code_computes_the_same() -> None:
    linear = Linear(D, V)
    compiled = torch.compile(chunked, backend="aot_eager")
    ours, theirs = (gradients(way, linear, 0.1) for way in (compiled, whole))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_what_a_head_drops_is_dropped_again_in_the_second_pass() -> None:
    seen: list[Tensor] = []

    class Dropping(Adapted):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.drop(x))
            return self.base_layer(seen[-1])

    torch.manual_seed(0)
    h, ids, _ = drawn()
    loss = chunked(Dropping(), h, ids).sum()
    torch.rand(5)
    loss.backward()
    first, second = seen[:5], seen[5:]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(second), strict=True))
    assert any((dropped == 0).any() for dropped in first)


def test_heads_compute_their_loss_by_it() -> None:
    head, span = Categorical(D, 1 << 20, bias=False), Schedule.scales([1, 2, 3])[:]
    h = torch.randn(1, len(span), D, requires_grad=True)
    tokens = torch.randint(1 << 20, (1, len(span)))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        loss = head.loss(h, tokens, span, Rng([0]))
    assert loss.shape == (1, len(span)) and max(kept) < len(span) * (1 << 20)
