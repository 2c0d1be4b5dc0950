"""Inception and networks of timm, with weights made up: none are fetched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as theirs

from var.errors import UserError
from var.metrics.inception import inception
from var.metrics.networks import Seen
from var.metrics.vision import Vision, vision

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Weights of that Inception, at random."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    return net.state_dict()


def test_inception_sees_features_logits_without_bias_and_places(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "net.pth")
    save_file(state, tmp_path / "net.safetensors")
    net = inception(tmp_path / "net.pth")
    seen: Seen = net(IMAGES.expand(2, 3, 32, 32))
    assert seen.features.shape == (2, net.num_features)
    assert seen.logits is not None and seen.spatial is not None
    torch.testing.assert_close(seen.logits, seen.features @ state["fc.weight"].T)
    assert seen.spatial.shape == (2, 7 * 17 * 17) and seen.spatial.min() >= 0
    places: list[Tensor] = []
    net.extractor.get_submodule("Mixed_6d").branch1x1.register_forward_hook(
        lambda module, given, out: places.append(out)
    )
    net(IMAGES)
    by_place = seen.spatial.view(2, 17, 17, 7)
    torch.testing.assert_close(by_place[1, 3, 5], places[0][1, :7, 3, 5], rtol=1e-4, atol=1e-4)
    again: Seen = inception(tmp_path / "net.safetensors")(IMAGES[1:])
    torch.testing.assert_close(again.spatial, seen.spatial[1:], rtol=1e-4, atol=1e-4)


def test_a_file_of_other_weights_or_of_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Inception at"):
        inception(tmp_path / "none.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not that Inception"):
        inception(tmp_path / "other.pth")
    torch.save({"weight": Path}, tmp_path / "pickle.pth")
    with pytest.raises(UserError, match="holds no weights"):
        inception(tmp_path / "pickle.pth")


def test_an_inception_that_cannot_be_fetched_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    with pytest.raises(UserError, match="no route to host.*features.path"):
        inception()


class Small(nn.Module):
    """What timm's networks have."""

    num_features = 3
    pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of each channel."""
        return x.mean(dim=(2, 3))


def test_a_network_of_timm_gets_images_of_its_size_and_scale() -> None:
    seen = Vision(Small(), "small")(IMAGES)
    expected = (IMAGES.float() / 255).mean(dim=(2, 3)) * 2 - 1
    torch.testing.assert_close(seen.features, expected, atol=0.02, rtol=0)
    assert seen.logits is None and seen.spatial is None
    assert Vision(Small(), "small").name == "FD-small-8"


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(UserError, match="features"):
        vision("no_such_network")
