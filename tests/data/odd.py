"""Image files as they are found: in order, in order if looked at closely, and past all help."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Make = Callable[[Path], object]
GLASS = bytes(range(0, 256, 16))  # how opaque each of sixteen colours is


def picture(seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Return a smooth picture in colour."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def _sideways(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(path, exif=exif, quality=95, subsampling=0)


def _transparent(path: Path) -> None:
    picture().quantize(16).save(path, transparency=GLASS)


def _deep(path: Path) -> None:
    grey = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path)


def _truncated(path: Path) -> None:
    picture(size=(64, 64)).save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:700])


def _bomb(path: Path) -> None:
    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(b"")))
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


FINE: dict[str, Make] = {
    "grey.jpg": lambda path: picture().convert("L").save(path),
    "inks.jpg": lambda path: picture().convert("CMYK").save(path),
    "palette.png": _transparent,
    "glass.png": lambda path: picture().convert("RGBA").save(path),
    "deep.png": _deep,
    "sideways.jpg": _sideways,
    "called.jpg": lambda path: picture().save(path, "PNG"),
    "panorama.png": lambda path: picture(size=(20_000, 9)).save(path),
}
UNUSABLE: dict[str, tuple[Make, str]] = {
    "truncated.jpg": (_truncated, "truncated"),
    "text.jpg": (lambda path: path.write_text("no image"), "not an image"),
    "empty.png": (lambda path: path.touch(), "not an image"),
    "dot.png": (lambda path: picture(size=(1, 1)).save(path), "1x1 pixels"),
    "bomb.png": (_bomb, "could be decompression bomb"),
    "photo.dat": (lambda path: picture().save(path, "JPEG"), "renamed: no image extension"),
}
