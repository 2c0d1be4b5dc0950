"""Training tokenizers on several resolutions, and training a part of one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from var.errors import UserError
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.adversarial import Adversarial, PatchDiscriminator
from var.tokenizers.continuous import KL
from var.tokenizers.losses import Objective, Reconstruction
from var.tokenizers.multiscale import MultiScaleVQ
from var.training.kl import KLTask
from var.training.tokenizer import TokenizerTask

IMAGE = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LADDER, SMALL = Schedule.scales([1, 2, 4, 8]), Schedule.scales([1, 2, 3, 4])


def codes(**changes: Any) -> TokenizerTask:
    made = MultiScaleVQ(
        vocabulary=16, channels=4, width=8, multipliers=(1, 1), blocks=1, scales=4, groups=4,
        standardise=True,
    )  # fmt: skip
    changes = {"objective": Objective({"pixels": Reconstruction()}), "revive": 1} | changes
    tokenizer = tiny.shaken(made, scale=0.2)
    return TokenizerTask(tokenizer=tokenizer, schedule=LADDER, sample=IMAGE, **changes)


def latents(**changes: Any) -> KLTask:
    vae: dict[str, Any] = {"block_out_channels": [4, 4], "norm_num_groups": 2, "latent_channels": 2}
    vae |= {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    kl: Any = tiny.shaken(KL(vae=vae), scale=0.2)
    objective = Objective({"pixels": Reconstruction()})
    return KLTask(tokenizer=kl, objective=objective, schedule=LADDER, sample=IMAGE, **changes)


def losses(task: Any) -> dict[str, Tensor]:
    return task.losses(task.module, IMAGE, torch.zeros(4, dtype=torch.long), Rng.batch(0, 4))


def steps(task: Any, count: int = 2, rate: float = 0.1) -> None:
    trained = [p for p in task.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    for step in range(count):
        loss = losses(task)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.stepped(step + 1, optimizer, torch.Generator().manual_seed(step))


def test_each_step_is_of_one_ladder_at_its_size_and_all_get_their_turn() -> None:
    task, drawn = codes(ladders=[SMALL]), []
    for step in range(40):
        task.step = step
        image, schedule = task.drawn(IMAGE)
        side = 16 if schedule == LADDER else 8
        assert schedule in (LADDER, SMALL) and image.shape == (4, 3, side, side)
        assert torch.equal(image, task.drawn(IMAGE)[0])
        drawn.append(schedule)
    assert 12 < drawn.count(SMALL) < 28 and drawn != [LADDER, SMALL] * 20
    assert image.min() >= 0 and image.max() <= 1


def test_images_are_made_smaller_not_cut() -> None:
    task, ramp = codes(ladders=[SMALL]), torch.linspace(0.1, 0.9, 16).expand(1, 3, 16, 16)
    sizes = {}
    for task.step in range(9):
        image, _ = task.drawn(ramp)
        sizes[image.shape[-1]] = image
    means = ramp.unflatten(-1, (8, 2)).mean(-1)[:, :, :8]
    torch.testing.assert_close(sizes[8][..., 2:-2], means[..., 2:-2], atol=1e-3, rtol=0)
    assert torch.equal(sizes[16], ramp)


@pytest.mark.parametrize("make", [codes, latents])
def test_a_run_on_several_ladders_learns_counts_and_goes_on_where_it_stopped(make: Any) -> None:
    task = make(ladders=[SMALL])
    steps(task, 6)
    again = make(ladders=[SMALL])
    again.load_state_dict(task.state_dict())
    assert again.drawn(IMAGE)[1] == task.drawn(IMAGE)[1] and again.step == 6
    report = task.report()
    if make is codes:
        shares = [report[f"usage/scale{k}"] for k in range(4)]
        assert all(0 < share <= 1 for share in shares)
    assert losses(task)["total"].isfinite()


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        (Schedule.scales([1, 2, 4]), "not as many scales as those of schedule"),
        (Schedule.raster(8), "not as many scales"),
        (Schedule.scales([1, 2, 4, 16]), "end on 16 x 16: use a square of at most 8 x 8"),
        (Schedule.scales([1, 2, 4, (4, 8)]), "end on 4 x 8: use a square"),
    ],
)
def test_ladders_that_cannot_share_a_tokenizer_are_refused(ladder: Schedule, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        codes(ladders=[SMALL, ladder])
    assert "\n" not in str(caught.value)


def changed(task: Any, count: int = 2) -> set[str]:
    """Return the parts of a tokenizer that some steps move, down to the last bit."""
    before = {k: v.clone() for k, v in task.tokenizer.state_dict().items()}
    steps(task, count)
    moved = (k for k, v in task.tokenizer.state_dict().items() if not torch.equal(v, before[k]))
    return {k.removeprefix("vae.").split(".")[0] for k in moved}


@pytest.mark.parametrize(
    ("make", "part", "expected"),
    [
        (codes, "decoder", {"decoder", "post_quant_conv"}),
        (codes, "quantizer", {"quantizer"}),
        (codes, "encoder", {"encoder", "quant_conv"}),
        (codes, "all", {"encoder", "quant_conv", "quantizer", "decoder", "post_quant_conv"}),
        (latents, "decoder", {"decoder", "post_quant_conv"}),
        (latents, "encoder", {"encoder", "quant_conv", "shift", "scale"}),
    ],
)
def test_only_the_part_that_is_trained_moves(make: Any, part: str, expected: set[str]) -> None:
    assert changed(make(train=part)) == expected


def test_tokens_stay_the_same_while_the_decoder_learns() -> None:
    task = codes(train="decoder")
    before, loss = task.tokenizer.encode(IMAGE, LADDER), float(losses(task)["l2"].detach())
    steps(task, 10, rate=1e-3)
    after = task.tokenizer.encode(IMAGE, LADDER)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert losses(task)["l2"] < loss


def test_a_part_that_there_is_not_is_named() -> None:
    with pytest.raises(UserError, match=r"task\.train=half: use all, encoder, quantizer, decoder"):
        codes(train="half")
    with pytest.raises(UserError, match=r"task\.train=quantizer: use all, encoder, decoder"):
        latents(train="quantizer")
    judge = PatchDiscriminator(width=8, layers=1, norm="group")
    terms = {"pixels": Reconstruction(), "judge": Adversarial(discriminator=judge, adaptive=True)}
    with pytest.raises(UserError, match=r"objective\.judge .*objective\.judge\.adaptive=false"):
        codes(train="encoder", objective=Objective(terms))
    assert changed(codes(train="decoder", objective=Objective(terms))) == {
        "decoder", "post_quant_conv",
    }  # fmt: skip
