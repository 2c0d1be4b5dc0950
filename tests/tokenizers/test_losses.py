"""The terms of the tokenizer's objective."""

import sys
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from var.errors import UserError
from var.tokenizers.adversarial import Adversarial, PatchDiscriminator, hinge, pull, vanilla
from var.tokenizers.losses import Objective, Reconstruction
from var.tokenizers.perceptual import Perceptual

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
GUESS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def adversary(start: int = 0, norm: str = "batch", **changes: Any) -> Adversarial:
    torch.manual_seed(0)
    judge = PatchDiscriminator(width=8, layers=2, norm=norm)
    return Adversarial(discriminator=judge, weight=0.5, start=start, **changes)


def test_pixel_errors_are_those_of_images_in_minus_one_to_one() -> None:
    losses = Reconstruction(l1=1, l2=1)(IMAGE, GUESS)
    a, b = IMAGE * 2 - 1, GUESS * 2 - 1
    torch.testing.assert_close(losses["l1"], (a - b).abs().mean())
    torch.testing.assert_close(losses["l2"], torch.nn.functional.mse_loss(a, b))


def test_each_adversary_is_moved_by_its_own_loss_alone() -> None:
    term, guess = adversary(), GUESS.clone().requires_grad_()
    losses = term(IMAGE, guess)
    losses["discriminator"].backward(retain_graph=True)
    assert guess.grad is None
    critic = [p.grad.clone() for p in term.parameters()]
    losses["adversarial"].backward()
    assert guess.grad is not None and guess.grad.any()
    assert all(torch.equal(a, p.grad) for a, p in zip(critic, term.parameters(), strict=True))
    assert any(grad.any() for grad in critic)


def test_the_generator_is_judged_only_from_the_start_step_on() -> None:
    term = adversary(start=2)
    assert not term(IMAGE, GUESS)["adversarial"] and not term(IMAGE, GUESS)["adversarial"]
    term.stepped(1)  # two forward passes were one step
    assert not term(IMAGE, GUESS)["adversarial"]
    term.stepped(2)
    assert term(IMAGE, GUESS)["adversarial"]


def test_fooling_the_discriminator_lowers_the_generators_loss() -> None:
    term, guess = adversary(), GUESS.clone().requires_grad_()
    before = term(IMAGE, guess)["adversarial"]
    before.backward()
    after = term(IMAGE, guess.detach() - 0.5 * guess.grad / guess.grad.abs().max())["adversarial"]
    assert after < before


def test_an_objective_names_the_losses_of_all_its_terms() -> None:
    objective = Objective({"pixels": Reconstruction(l1=1), "adversarial": adversary()})
    assert set(objective(IMAGE, GUESS)) == {"l1", "l2", "adversarial", "discriminator"}


def grads(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


def test_a_discriminator_that_waits_learns_nothing_before_the_start_and_then_what_others_do() -> (
    None
):
    waiting, eager = adversary(start=1, wait=True), adversary(start=1)
    before, other = (term(IMAGE, GUESS)["discriminator"] for term in (waiting, eager))
    assert float(before.detach()) == 0 and not any(g.any() for g in grads(before, waiting))
    assert float(other.detach()) > 0
    waiting.stepped(1)
    after, other = (term(IMAGE, GUESS)["discriminator"] for term in (waiting, eager))
    assert torch.equal(after, other) and any(g.any() for g in grads(after, waiting))


def test_the_discriminators_loss_has_a_weight_of_its_own() -> None:
    whole, half = adversary()(IMAGE, GUESS), adversary(discriminator_weight=0.5)(IMAGE, GUESS)
    torch.testing.assert_close(half["discriminator"], 0.5 * whole["discriminator"])
    assert torch.equal(half["adversarial"], whole["adversarial"])


def test_discriminators_are_content_with_a_margin_or_never() -> None:
    sure, unsure = torch.full((2,), 3.0), torch.zeros(2)
    assert hinge(sure, -sure) == 0 and hinge(unsure, unsure) == 1
    assert 0 < vanilla(sure, -sure) < vanilla(unsure, unsure)
    torch.testing.assert_close(vanilla(unsure, unsure), torch.tensor(2.0).log())
    torch.testing.assert_close(hinge(-sure, sure), torch.tensor(4.0))
    found = adversary(kind="vanilla")(IMAGE, GUESS)
    assert not torch.equal(found["discriminator"], adversary()(IMAGE, GUESS)["discriminator"])


class Painter(nn.Module):
    """A decoder of one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.last = nn.Conv2d(3, 3, 3, padding=1, bias=False)

    def forward(self) -> Tensor:
        return self.last(GUESS)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_an_adaptive_term_pulls_as_hard_as_those_before_it(scale: float) -> None:
    painter = Painter()
    terms = {"pixels": Reconstruction(l2=scale), "judge": adversary(adaptive=True)}
    losses = Objective(terms)(IMAGE, painter(), painter.last.weight)
    pixels, judged = (
        torch.stack(grads(losses[name], painter)).norm() for name in ("l2", "adversarial")
    )
    torch.testing.assert_close(judged, 0.5 * pixels, rtol=1e-2, atol=0)
    fooled = adversary()(IMAGE, painter())["adversarial"] / 0.5
    factor = pull(losses["l2"], fooled, painter.last.weight)
    torch.testing.assert_close(losses["adversarial"], 0.5 * factor * fooled)
    assert not factor.requires_grad


def test_the_pull_is_bounded_where_nothing_pulls_back() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert pull(weight.sum(), 0 * weight.sum(), weight) == 1e4
    assert pull(0 * weight.sum(), weight.sum(), weight) == 0


def test_without_gradients_an_adaptive_term_is_an_ordinary_one() -> None:
    painter, terms = Painter(), {"l": Reconstruction(), "judge": adversary(adaptive=True)}
    with torch.no_grad():
        losses = Objective(terms)(IMAGE, painter(), painter.last.weight)
    plain = adversary()(IMAGE, painter())
    torch.testing.assert_close(losses["adversarial"], plain["adversarial"].detach())


def test_an_adaptive_term_needs_others_before_it() -> None:
    with pytest.raises(UserError, match=r"objective\.judge .*objective\.judge\.adaptive=false"):
        Objective({"judge": adversary(adaptive=True), "pixels": Reconstruction()})
    assert Objective({})(IMAGE, GUESS) == {}


def test_the_published_discriminator_has_its_layers_and_no_bias_where_it_is_normalised() -> None:
    made = PatchDiscriminator()
    convolutions = [layer for layer in made if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 1, 1]
    assert [c.bias is None for c in convolutions] == [False, True, True, True, False]
    assert made(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    assert made[-1].in_channels == 8 * 64 == PatchDiscriminator(layers=5)[-1].in_channels


@pytest.mark.parametrize(("norm", "alone"), [("group", True), ("batch", False)])
def test_judging_an_image_by_itself_takes_group_norms(norm: str, alone: bool) -> None:
    judge = adversary(norm=norm).discriminator
    together, by_itself = judge(IMAGE)[:1], judge(IMAGE[:1])
    assert torch.allclose(together, by_itself, atol=1e-5) is alone


def test_what_there_is_not_is_named() -> None:
    with pytest.raises(UserError, match="norm=layer of a discriminator: use batch or group"):
        PatchDiscriminator(norm="layer")
    with pytest.raises(UserError, match="kind=wgan .*: use hinge or vanilla"):
        adversary(kind="wgan")


def test_a_checkpoint_can_hold_the_perceptual_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpips.pretrained_networks.vgg16", lambda **_: nn.Identity())
    assert load(save(Perceptual().state_dict()))  # safetensors takes no tensor under two names


def test_a_missing_package_or_network_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(**_: Any) -> nn.Module:
        raise URLError("no route")

    with monkeypatch.context() as patch:
        patch.setattr("lpips.pretrained_networks.vgg16", unreachable)
        with pytest.raises(UserError, match="cannot fetch the network vgg .*no route"):
            Perceptual()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"pip install 'var-toolkit\[perceptual\]'"):
        Perceptual()
