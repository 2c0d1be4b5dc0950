"""The terms of the tokenizer's objective."""

import torch

from var.tokenizers.losses import Adversarial, Objective, PatchDiscriminator, Reconstruction

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
GUESS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def adversary(start: int = 0) -> Adversarial:
    torch.manual_seed(0)
    return Adversarial(discriminator=PatchDiscriminator(width=8, layers=2), weight=0.5, start=start)


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
    values = [float(term(IMAGE, GUESS)["adversarial"].detach()) for _ in range(3)]
    assert values[:2] == [0, 0] and values[2] != 0


def test_fooling_the_discriminator_lowers_the_generators_loss() -> None:
    term, guess = adversary(), GUESS.clone().requires_grad_()
    before = term(IMAGE, guess)["adversarial"]
    before.backward()
    after = term(IMAGE, guess.detach() - 0.5 * guess.grad / guess.grad.abs().max())["adversarial"]
    assert after < before


def test_an_objective_names_the_losses_of_all_its_terms() -> None:
    objective = Objective({"pixels": Reconstruction(l1=1), "adversarial": adversary()})
    assert set(objective(IMAGE, GUESS)) == {"l1", "l2", "adversarial", "discriminator"}
