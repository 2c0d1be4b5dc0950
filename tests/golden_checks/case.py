"""A case file: numbers recorded from the original code, and the books on what was compared."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from var.published import Parts, build

# Elements hashed at a time: small enough for the processor's cache.
_CHUNK = 1 << 18


class Excuse(NamedTuple):
    """Why an output of a kind of case is not compared.

    Attributes:
        kind: of case.
        output: name below `out/`.
        reason: in words.
        when: which cases of the kind are meant.
    """

    kind: str
    output: str
    reason: str
    when: Callable[[Case], bool] = lambda case: True


class Case:
    """One recording.

    Attributes:
        system: whose code was recorded.
        name: of the case.
        about: its metadata: configuration, call, tolerances.
        inputs, outputs: tensors below `in/` and `out/`.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.about: dict[str, Any] = json.loads(file.metadata()["case"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.system, self.name = path.parent.name, path.stem
        self.inputs = _under("in/", tensors)
        self.outputs = _under("out/", tensors)
        self.state = _under("state/", tensors)
        if "state_from" in self.about:  # recorded once, with the case of that name
            self.state = Case(path.with_stem(self.about["state_from"])).state
        self.compared: set[str] = set()

    @property
    def config(self) -> Mapping[str, Any]:
        """Constructor keywords of the original."""
        return self.about["config"]

    @property
    def call(self) -> Mapping[str, Any]:
        """Arguments of the recorded call."""
        return self.about["call"]

    def build(self) -> Parts:
        """Return the parts as a user gets them, in evaluation mode."""
        state = self.state
        if "state_rule" in self.about:
            rule = self.about["state_rule"]
            state = {key: hashed(key, rule["seed"], *row) for key, row in rule["table"].items()}
        parts = build(self.system, self.config, state)
        for module in (parts.model, parts.closer, parts.tokenizer):
            if module is not None:
                module.eval()
        return parts

    def expect(self, name: str, actual: Tensor) -> None:
        """Compare with `out/name`: whole numbers exactly, others within the recorded tolerance."""
        expected = self.outputs[name]
        actual = actual.detach()
        if expected.is_floating_point():
            actual, rtol, atol = actual.to(expected.dtype), self.about["rtol"], self.about["atol"]
        else:
            rtol, atol = 0.0, 0.0
        torch.testing.assert_close(
            actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"out/{name}: {text}"
        )
        self.compared.add(name)

    def expect_numbers(self, name: str, *actual: float | Tensor) -> None:
        """Compare a row of numbers."""
        self.expect(name, torch.tensor([torch.as_tensor(number).item() for number in actual]))

    def numbered(self, stem: str) -> Iterator[tuple[int, str]]:
        """Yield k and name of each output `stem_k`."""
        for name in self.outputs:
            head, _, number = name.rpartition("_")
            if head == stem and number.isdigit():
                yield int(number), name


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def hashed(key: str, seed: int, shape: list[int], offset: float, scale: float) -> Tensor:
    """Return weights by the rule that is written out in the metadata of the large cases."""
    size, salt = int(np.prod(shape)), np.uint32(zlib.crc32(key.encode()) ^ seed)
    values = np.empty(size, np.float32)
    for start in range(0, size, _CHUNK):
        x = np.arange(start, min(start + _CHUNK, size), dtype=np.uint32)
        x += salt
        x ^= x >> 16
        x *= np.uint32(0x85EBCA6B)
        x ^= x >> 13
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> 16
        u = x.astype(np.float64)
        u /= 2**32
        u -= 0.5
        u *= scale * np.sqrt(12)
        values[start : start + len(x)] = u + offset
    return torch.from_numpy(values).view(shape)
