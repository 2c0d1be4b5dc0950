"""`var-train` on a tokenizer that there is already: its weights, a part of it, another ladder."""

from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.utils import save_image

from tests.conftest import TOYS, make_run
from tests.training.words import SCALES, TRAINER, forget, train
from var import hub, store
from var.errors import UserError
from var.metrics.features import SmallClassifier
from var.scripts.command import made
from var.tokenizers.losses import Objective

DIGITS = ("name=x", "data=digits", "tokenizer=none", *TRAINER, "trainer.steps=2")
VQ = (*DIGITS, "init.run=digits-vq", "schedule=[1,2,3,4]")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with toy runs of 8x8 images."""
    forget()
    monkeypatch.chdir(tmp_path)
    for family in TOYS:
        store.save(tmp_path / family, make_run(family=family))
    return tmp_path


def tuned(place: Path, *words: str) -> tuple[store.Run, dict[str, Tensor], dict[str, Tensor]]:
    """Return the run that is trained, with its tokenizer's weights and those it began with."""
    train(place, *words)
    found = store.load(place / "x")
    (start,) = (word.partition("=")[2] for word in words if word.startswith("init.run="))
    return found, found.tokenizer.state_dict(), hub.find(start).tokenizer.state_dict()


def test_a_tokenizer_is_trained_on_from_where_it_was(place: Path) -> None:
    found, new, old = tuned(place, *VQ, "trainer.rate=1e-5")
    assert found.recipe.tokenizer == hub.find("digits-vq").recipe.tokenizer
    assert found.model is None and found.recipe.data.name == "digits"
    assert not torch.equal(new["encoder.conv_in.weight"], old["encoder.conv_in.weight"])
    codes = "quantizer.codebook.weight"
    torch.testing.assert_close(new[codes], old[codes], atol=1e-3, rtol=0)  # not made anew


@pytest.mark.parametrize("part", ["decoder", "quantizer"])
def test_a_part_is_trained_and_the_rest_stays_to_the_last_bit(place: Path, part: str) -> None:
    _, new, old = tuned(place, *VQ, f"task.train={part}", "trainer.ema=0.5")
    moved = {key.split(".")[0] for key in old if not torch.equal(new[key], old[key])}
    assert moved == {"quantizer": {"quantizer"}, "decoder": {"decoder", "post_quant_conv"}}[part]


def test_another_ladder_takes_over_the_scales_that_it_has(place: Path) -> None:
    words = [*DIGITS, "init.run=digits-vq", "schedule=[1,2,4]", "task.train=decoder"]
    found, new, old = tuned(place, *words)
    assert found.recipe.tokenizer["scales"] == len(found.recipe.schedule) == 3
    assert torch.equal(new["quantizer.standard.mean"], old["quantizer.standard.mean"][[0, 1, 3]])


def test_the_tokenizer_of_a_generator_s_run_is_trained_on_alone(place: Path) -> None:
    words = ["init.run=var", "data.train.size=8", "schedule=[1,2,4]"]
    found, new, old = tuned(place, *DIGITS, *words)
    assert found.model is None and new.keys() == old.keys()


def test_a_continuous_tokenizer_keeps_to_where_its_latents_lay(place: Path) -> None:
    words = ["init.run=flowar", "task=kl", "data.train.size=8", "schedule=[1,2,4]"]
    _, new, old = tuned(place, *DIGITS, *words, "task.train=decoder")
    same = {key for key in old if torch.equal(new[key], old[key])}
    assert {"shift", "scale"} <= same < old.keys()


def test_a_generator_is_trained_on_another_ladder_of_its_tokenizer(place: Path) -> None:
    words = ["name=var2", "tokenizer=trained", "tokenizer.run=digits-vq", "data=digits"]
    small = ["backbone=var", "backbone.depth=1", "backbone.width=16", "backbone.heads=2"]
    train(place, *words, *small, *SCALES, "trainer.steps=1")
    recipe = store.load(place / "var2").recipe
    assert len(recipe.schedule) == recipe.tokenizer["scales"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokenizer=multiscale"], r"init\.run=digits-vq: say tokenizer=none to train"),
        (["init.run=null"], "tokenizer=none is that of a run: name it by init.run=…"),
        (["task.train=half"], r"task\.train=half: use all, encoder, quantizer, decoder"),
        (["task.ladders=[[1,2]]"], r"task\.ladders: .* not as many scales"),
        (["task.ladders=[[1,x]]"], r"task\.ladders must be a list of sides"),
        (
            ["init.run=null", "tokenizer=multiscale", "task.train=decoder"],
            r"task\.train=decoder leaves the rest as it is: name a run by init\.run=…",
        ),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(
    place: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(place, *VQ, *words)
    assert "\n" not in str(caught.value) and not (place / "x").exists()


def composed(*words: str) -> Any:
    with initialize_config_module("var.configs", version_base="1.3"):
        return compose("train", ["experiment=cifar-tokenizer", *words])


def test_the_objectives_with_networks_are_made_of_their_configs(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = SmallClassifier(
        mean=[0.5] * 3, deviation=[0.2] * 3, stages=[[32, 32], [64, 64], [128, 128], [256, 128]]
    )
    state = {k.removeprefix("layers."): v for k, v in network.state_dict().items()}
    save_file(state, place / "net.safetensors")
    image = torch.rand(2, 3, 32, 32)
    with pytest.raises(UserError, match=r"needs a feature network: say features=cifar10_cnn"):
        made(composed("objective=small").objective)
    words = ["objective=small", "features=cifar10_cnn", "features.path=net.safetensors"]
    small = Objective(made(composed(*words).objective))
    last = nn.Conv2d(3, 3, 1)
    losses = small(image, last(image), last.weight)
    assert set(losses) == {"l1", "l2", "perceptual", "adversarial", "discriminator"}
    from torchvision.models import get_model

    monkeypatch.setattr("torchvision.models.get_model", lambda name, **_: get_model(name))
    frozen = Objective(made(composed("objective=frozen", "~objective.perceptual").objective))
    assert len(frozen.terms["adversarial"].discriminator.heads) == 4  # type: ignore[arg-type,union-attr]
    with pytest.raises(UserError, match="efficientnet_b0 .* is none its file"):
        path = "objective.adversarial.discriminator.features.network.path=none"
        made(composed("objective=frozen", "~objective.perceptual", path).objective)


def test_what_reads_ahead_ends_with_a_run_that_fails(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = place / "images" / split / name
            folder.mkdir(parents=True)
            save_image(torch.rand(3, 16, 16), folder / "image.png")

    def fail(*_: object, **__: object) -> None:
        assert active_children()
        raise UserError("the disk is full")

    monkeypatch.setattr("var.training.loop.Trainer._keep_records", fail)
    data = ("data=image_folder", "data.root=images", "data.size=16", "data.workers=1")
    words = ("name=x", *data, "tokenizer=none", "init.run=digits-vq", "schedule=[1,2,3,4]")
    # While the error is held, so are the frames that it came through, and what they opened.
    with pytest.raises(UserError, match="disk is full") as held:
        train(place, *words, *TRAINER, "trainer.steps=2", "trainer.batch_size=2")
    assert held.value and not active_children()
