"""Metrics against independent computations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm

from var.data.images import digits
from var.errors import UserError
from var.metrics.features import SmallClassifier, digits_classifier, small_classifier
from var.metrics.images import Likeness, psnr
from var.pixels import to_uint8

REAL = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FAKE = REAL.flip(-1) * torch.linspace(0.6, 1, 200)[:, None, None, None]


def network() -> SmallClassifier:
    torch.manual_seed(0)
    return SmallClassifier(mean=[0.5], deviation=[0.3], padding=2).eval()


def likeness(net: SmallClassifier, fake: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    metric = Likeness(net)
    metric.real([REAL[:150], REAL[150:]])
    metric.fake(fake[:90], label[:90])
    metric.fake(fake[90:], label[90:])
    return metric.report()


def test_the_frechet_distance_equals_the_formula_on_saved_features() -> None:
    net, label = network(), torch.zeros(200, dtype=torch.int64)
    with torch.no_grad():
        a, b = (net(to_uint8(x)).features.double().numpy() for x in (REAL, FAKE))
    cross = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * cross
    )
    measured = likeness(net, FAKE, label)["frechet_distance"]
    assert measured == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert likeness(net, REAL, label)["frechet_distance"] == pytest.approx(0, abs=1e-5)


def test_label_agreement_is_the_share_of_images_classified_as_asked() -> None:
    net = network()
    with torch.no_grad():
        label = net(to_uint8(FAKE)).logits.argmax(-1)
    wrong = label.clone()
    wrong[:50] += 1
    assert likeness(net, FAKE, label)["label_agreement"] == 1
    assert likeness(net, FAKE, wrong)["label_agreement"] == 0.75


def test_a_network_is_shown_images_as_it_knows_them() -> None:
    grey = network().native(to_uint8(REAL))
    assert grey.shape == (200, 1, 28, 28) and grey.dtype == torch.uint8
    levels = REAL[:, :, 2:30, 2:30].mean(dim=1, keepdim=True) * 255
    torch.testing.assert_close(grey.float(), levels, atol=1.001, rtol=0)
    colour = SmallClassifier(mean=[0.5] * 3, deviation=[0.3] * 3)
    assert torch.equal(colour.native(to_uint8(REAL)), (REAL * 255).round().byte())


def test_psnr_of_a_known_error() -> None:
    metric = psnr()
    metric.update(REAL * 0 + 0.4, REAL * 0 + 0.5)
    assert float(metric.compute()) == pytest.approx(20, abs=1e-3)


def test_a_missing_or_foreign_network_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no feature network at"):
        small_classifier(tmp_path / "none.safetensors", mean=[0.5], deviation=[0.3])
    for name in ("0.weight", "other"):
        save_file({name: torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=f"(?s)is another network.*{name}"):
            small_classifier(tmp_path / "other.safetensors", mean=[0.5], deviation=[0.3])


def test_the_digits_classifier_knows_the_test_images() -> None:
    data = digits(train=False)
    net = digits_classifier()
    with torch.inference_mode():
        seen = net(data.pixels.expand(-1, 3, -1, -1))
    assert seen.logits is not None and seen.features.shape == (297, net.num_features)
    assert (seen.logits.argmax(dim=1) == data.labels).float().mean() > 0.98
