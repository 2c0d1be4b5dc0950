"""What samples are compared with: moments of real images, made once and kept."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from var.atomic import replace
from var.bars import progress_bar
from var.data.batches import loader
from var.data.images import ImageData
from var.devices import pieces
from var.digests import checksum, of_tensors
from var.errors import UserError
from var.evaluation.npz import Batch
from var.metrics.networks import Network, Seen, device_of, exact, identity
from var.metrics.scores import Moments
from var.pixels import to_uint8

log = logging.getLogger(__name__)
SHOWN = 10_000  # features that are kept for precision and recall, as many as ADM's batches have


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images, as a network sees them.

    Attributes:
        name: of the data and the split, or of the file.
        sha256: tells them from others.
        images: how many; 0: nobody says.
        size: side in pixels; 0: likewise.
        moments: of their features.
        spatial: of their spatial features; None: there are none.
        shown: (n, D) features of up to 10 000 of them, evenly spread; None: there are only moments.
    """

    name: str
    sha256: str
    images: int
    size: int
    moments: Moments
    spatial: Moments | None = None
    shown: Tensor | None = None

    def plain(self) -> dict[str, str | int]:
        """Return what a report says of it."""
        told = {"name": self.name, "images": self.images, "size": self.size}
        return {**told, "sha256": self.sha256}


def of_data(
    data: ImageData, split: str, network: Network, *, batch_size: int, home: Path | None
) -> Reference:
    """Return the reference of all images of a data set; those that are unusable are left out.

    Args:
        data: without crops and flips.
        split: its name.
        network: what looks at them; where it is, they go.
        batch_size: images at a time.
        home: folder where what was found out is looked up, and kept; None: it is found out anew.
    """
    device = device_of(network)

    def batches() -> Iterator[Tensor]:
        lists = pieces(len(data), batch_size)
        read = loader(data, map(list, lists))
        for image, _ in progress_bar(read, total=len(lists), desc="real images", unit="batch"):
            if len(image):  # there is none where all are unusable
                yield to_uint8(image.to(device))

    sign = hashlib.sha256(f"{data.version()} {split}".encode()).hexdigest()
    return _kept(home, f"{data.name} {split}", sign, data.size, network, batches)


def of_file(path: str | Path, network: Network, *, batch_size: int, home: Path | None) -> Reference:
    """Return the reference of an `.npz` file: its moments if it has some of Inception.

    Raises:
        UserError: the file cannot be read, or its moments are those of another network.
    """
    batch = Batch(path)
    name, sign = batch.path.name, checksum(batch.path)
    device = device_of(network)

    def batches() -> Iterator[Tensor]:
        steps = -(-len(batch) // batch_size)
        for image in progress_bar(batch.batches(batch_size), total=steps, desc=name, unit="batch"):
            yield image.to(device)

    side = batch.shape[1]
    seen = _kept(home, name, sign, side, network, batches) if len(batch) else None
    if network.name != "FID" or batch.moments is None:
        if seen is None:
            raise UserError(
                f"{path} holds moments of Inception's features and no images, which "
                f"{network.name} would need: use features=inception"
            )
        return seen
    if batch.moments.mean.shape != (network.num_features,):
        raise UserError(f"{path}: mu is {batch.moments.mean.shape}, not ({network.num_features},)")
    # Moments that come with a batch are of more images than the batch has.
    shown = seen.shown if seen else None
    return Reference(name, sign, len(batch), side, batch.moments, batch.spatial, shown)


def _kept(
    home: Path | None,
    name: str,
    sign: str,
    side: int,
    network: Network,
    batches: Callable[[], Iterator[Tensor]],
) -> Reference:
    key = hashlib.sha256(f"1 {sign} {identity(network)}".encode()).hexdigest()
    path = None if home is None else home / f"{key[:32]}.safetensors"
    if path is not None and path.is_file():
        if (found := _read(path, name, sign, side)) is not None:
            return found
        log.warning("%s is damaged: what it held is found out anew", path)
    found = _seen(name, sign, side, network, batches())
    if path is not None:
        try:
            _write(path, found)
        except UserError as error:
            log.warning("what is known of %s is not kept: %s; see statistics=…", name, error)
    return found


@torch.inference_mode()
def _seen(
    name: str, sign: str, side: int, network: Network, batches: Iterable[Tensor]
) -> Reference:
    looked: Iterator[Any] = (exact(network, batch) for batch in batches)
    seen = [Seen(*(x if x is None else x.cpu() for x in each)) for each in looked]
    features = torch.cat([each.features for each in seen])
    spatial = [each.spatial for each in seen if each.spatial is not None]
    if len(features) < 2:
        raise UserError(f"{name}: {len(features)} images are too few to compare with")
    picks = torch.linspace(0, len(features) - 1, min(SHOWN, len(features))).round().long()
    return Reference(
        name,
        sign,
        len(features),
        side,
        Moments.of(features),
        Moments.of(torch.cat(spatial)) if spatial else None,
        features[picks].clone(),
    )


def _tensors(reference: Reference) -> dict[str, Tensor]:
    pairs = {"": reference.moments, "spatial_": reference.spatial}
    kept = {} if reference.shown is None else {"shown": reference.shown}
    for prefix, moments in pairs.items():
        if moments is not None:
            kept[f"{prefix}mean"] = torch.from_numpy(moments.mean)
            kept[f"{prefix}covariance"] = torch.from_numpy(moments.covariance)
    return kept


def _write(path: Path, reference: Reference) -> None:
    tensors = _tensors(reference)
    notes = {"name": reference.name, "sha256": reference.sha256, "images": str(reference.images)}
    # Another process may be writing the same.
    own = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
    replace(own, lambda part: save_file(tensors, part, {**notes, "sum": of_tensors(tensors)}))
    own.replace(path)


def _read(path: Path, name: str, sign: str, side: int) -> Reference | None:
    """Return what a file holds; None: it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            notes = file.metadata()
    except (OSError, SafetensorError):
        return None
    if notes["sum"] != of_tensors(tensors):
        return None

    def moments(prefix: str) -> Moments | None:
        if f"{prefix}mean" not in tensors:
            return None
        return Moments(tensors[f"{prefix}mean"].numpy(), tensors[f"{prefix}covariance"].numpy())

    own = moments("")
    assert own is not None
    images, spatial = int(notes["images"]), moments("spatial_")
    return Reference(name, sign, images, side, own, spatial, tensors["shown"])
