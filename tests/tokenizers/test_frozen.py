"""Frozen networks: their maps, the distance and the discriminator that look at them."""

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from var.errors import UserError
from var.tokenizers.adversarial import Adversarial
from var.tokenizers.frozen import (
    Features,
    FrozenDiscriminator,
    timm_network,
    torchvision_network,
)
from var.tokenizers.perceptual import FeatureDistance

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
GUESS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*first, nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())


def features(*after: str) -> Features:
    return Features(network=network(), after=after or ("2", "5"))


class Alone(nn.Module):
    """A network that returns maps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, image: Tensor) -> list[Tensor]:
        shallow = self.layers[:3](image)
        return [shallow, self.layers[3:](shallow)]


def test_maps_are_what_comes_out_of_the_named_layers_of_the_standardised_image() -> None:
    mean, deviation = [0.2, 0.4, 0.6], [0.5, 0.25, 1.0]
    made = Features(network=network(), after=("5", "2"), mean=mean, deviation=deviation)
    given = (IMAGE - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    whole = network().eval()
    deep, shallow = deepcopy(made)(IMAGE)
    torch.testing.assert_close(shallow, whole[:3](given))
    torch.testing.assert_close(deep, whole(given))
    assert made.channels() == [6, 4]
    itself = Features(network=Alone(), mean=mean, deviation=deviation)(IMAGE)
    assert all(torch.equal(a, b) for a, b in zip(itself, (shallow, deep), strict=True))


def test_layers_behind_the_last_one_that_is_wanted_do_not_run() -> None:
    broken = nn.Sequential(*network(), nn.Linear(7, 7))
    assert Features(network=broken, after=("2",))(IMAGE)[0].shape == (2, 4, 16, 16)
    assert not any(layer._forward_hooks for layer in broken.modules())


def test_images_are_brought_to_the_size_that_the_network_was_trained_with() -> None:
    shallow, deep = Features(network=network(), after=("2", "5"), size=24)(IMAGE)
    assert shallow.shape == (2, 4, 24, 24) and deep.shape == (2, 6, 12, 12)


def test_what_is_frozen_stays_as_it_is_while_others_are_trained() -> None:
    judge = FrozenDiscriminator(features=features(), width=8).train()
    before = deepcopy(judge.features.state_dict())
    judge(IMAGE).mean().backward()
    assert not any(weight.requires_grad for weight in judge.features.parameters())
    assert all(weight.grad is not None for weight in judge.heads.parameters())
    after = judge.features.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before), "batch statistics too"


def test_a_feature_distance_is_that_of_directions_averaged_over_places_and_stages() -> None:
    a, b = ([F / F.norm(dim=1, keepdim=True).clamp(min=1e-3) for F in features()(x)]
            for x in (IMAGE, GUESS))  # fmt: skip
    stages = [(x - y).square().sum(1).mean() for x, y in zip(a, b, strict=True)]
    found = FeatureDistance(features=features(), weight=3.0)(IMAGE, GUESS)["perceptual"]
    torch.testing.assert_close(found, 3 * (stages[0] + stages[1]) / 2)
    assert FeatureDistance(features=features())(IMAGE, IMAGE)["perceptual"] == 0


def test_a_feature_distance_has_gradients_where_nothing_is_seen() -> None:
    blind = network()
    nn.init.constant_(blind[4].bias, -1e3)  # type: ignore[arg-type]
    term = FeatureDistance(features=Features(network=blind, after=("2", "5")))
    guess = GUESS.clone().requires_grad_()
    term(IMAGE, guess)["perceptual"].backward()
    assert guess.grad is not None and guess.grad.isfinite().all() and guess.grad.any()


def test_a_frozen_discriminator_gives_every_stage_the_same_weight() -> None:
    judge = FrozenDiscriminator(features=features(), width=8)
    logits = judge(IMAGE * 2 - 1)
    assert logits.shape == (2, 2, 16, 16)
    parts = [head(x).mean() for head, x in zip(judge.heads, judge.features(IMAGE), strict=True)]
    torch.testing.assert_close(logits.mean(), (parts[0] + parts[1]) / 2)
    torch.testing.assert_close(judge(IMAGE[:1] * 2 - 1), logits[:1], msg="an image by itself")


def test_heads_learn_to_tell_images_from_reconstructions_and_are_then_fooled() -> None:
    term = Adversarial(discriminator=FrozenDiscriminator(features=features(), width=8), weight=1.0)
    heads = [weight for weight in term.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(heads, lr=1e-2)
    first = float(term(IMAGE, GUESS)["discriminator"].detach())
    for _ in range(20):
        loss = term(IMAGE, GUESS)["discriminator"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * first
    guess = GUESS.clone().requires_grad_()
    before = term(IMAGE, guess)["adversarial"]
    before.backward()
    assert guess.grad is not None
    better = guess.detach() - 0.1 * guess.grad / guess.grad.abs().max()
    assert term(IMAGE, better)["adversarial"] < before


def test_a_layer_that_there_is_not_is_named() -> None:
    with pytest.raises(UserError, match=r"has no layer 9: name some of 0 … 5$"):
        features("2", "9")


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    theirs = get_model("squeezenet1_1", weights=None)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    ours = torchvision_network("squeezenet1_1", path=tmp_path / "net.pth")
    assert torch.equal(ours.features[0].weight, theirs.features[0].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("squeezenet1_1", "none.pth", r"squeezenet1_1 of torchvision .*is .*none\.pth its file\?"),
        ("squeezenet1_1", "other.pth", r"squeezenet1_1 of torchvision .*other\.pth its file"),
        ("vgg17", "other.pth", "vgg17 of torchvision .*Unknown model"),
    ],
)
def test_what_is_no_file_of_a_network_is_told_in_one_line(
    tmp_path: Path, name: str, file: str, message: str
) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message) as caught:
        torchvision_network(name, path=tmp_path / file)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched_are_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models.get_model", unreachable)
    with pytest.raises(UserError, match=r"vgg16 of torchvision \(no route\): .*path=…"):
        torchvision_network("vgg16")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm: pip install 'var-toolkit\[perceptual\]'"):
        timm_network("resnet18", stages=[1])


def test_stages_of_timm_are_maps(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    name, path = "test_efficientnet", tmp_path / "net.pth"
    torch.save(timm.create_model(name, pretrained=False).state_dict(), path)
    made = Features(network=timm_network(name, stages=[1, 2], path=path))
    found = made(torch.rand(1, 3, 32, 32))
    assert [x.shape[1] for x in found] == made.channels() and [x.shape[2] for x in found] == [8, 4]
    with pytest.raises(UserError, match="no weights for the network nothing of timm"):
        timm_network("nothing", stages=[1], path=path)
