"""Reports as `var-evaluate` writes them."""

import json
from pathlib import Path
from typing import Any


def report(**changes: Any) -> dict[str, Any]:
    """Return a report of samples with changes; `None` leaves an entry out."""
    made = {
        "format": 1,
        "kind": "generation",
        "model": "fashion-var",
        "weights": "a" * 64,
        "reference": {"name": "fashion_mnist test", "images": 10_000, "sha256": "b" * 64},
        "network": {"name": "FD-FashionMNISTCNN", "weights": "c" * 64},
        "images": 10_000,
        "per_class": 1000,
        "seed": 0,
        "sampling": {"guidance": [1.0, 2.5], "top_k": 0},
        "decoding": {"name": "sequential"},
        "cache": {"name": "static"},
        "precision": "fp32",
        "device": "cpu",
        "size": 32,
        "metrics": {"FD-FashionMNISTCNN": {"value": 0.312, "spread": 0.004}},
        "speed": {"images_per_second": 60.1, "calls_per_batch": 5.0},
        "preset": None,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def fd(value: float, spread: float | None = 0.004) -> dict[str, Any]:
    """Return metrics of which the Frechet distance is given."""
    return {"FD-FashionMNISTCNN": {"value": value, "spread": spread}}


def stored(folder: Path, made: dict[str, Any]) -> Path:
    """Return the file of a report in a folder."""
    folder.mkdir()
    path = folder / "report.json"
    path.write_text(json.dumps(made))
    return path
