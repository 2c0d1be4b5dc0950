"""What tests of commands share: nothing is downloaded."""

import logging
from collections.abc import Iterator

import pytest
from torch import nn


@pytest.fixture(autouse=True)
def no_network_of_the_perceptual_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the network out that judges images: building it takes half a gigabyte."""
    monkeypatch.setattr("lpips.pretrained_networks.vgg16", lambda **_: nn.Identity())


@pytest.fixture(autouse=True)
def messages_as_before() -> Iterator[None]:
    """Leave it to no command how much the next test hears."""
    logger = logging.getLogger("var")
    level = logger.level
    yield
    logger.setLevel(level)
