"""Stand-ins for data sets that are not shipped."""

from pathlib import Path

import torch


def fake_fashion_mnist(root: Path) -> torch.Tensor:
    """Write idx files of five images as the originals are stored, and return the pixels."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    for split in ("train", "t10k"):
        header = b"".join(n.to_bytes(4, "big") for n in (0x803, 5, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.numpy().tobytes())
        header = b"".join(n.to_bytes(4, "big") for n in (0x801, 5))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + bytes(range(5)))
    return pixels
