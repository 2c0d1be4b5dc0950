"""What the machine can do: rates of matrix products and convolutions, measured when a bench starts.

The share of such a rate that a run reaches says how much speed is left to be had.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from var.bench.stopwatch import Clock, finisher
from var.nn.linear import packed, packed_is_faster, packed_linear


class Rate(NamedTuple):
    """A measured rate.

    Attributes:
        name: of the product.
        precision: name of its number type.
        flops: operations per second; a multiplication and an addition are two.
    """

    name: str
    precision: str
    flops: float


class Product(NamedTuple):
    """A product to measure: its name, its number type's, its operations, and what computes it."""

    name: str
    precision: str
    operations: float
    compute: Callable[[], object]


class Sizes(NamedTuple):
    """Sizes of the products.

    Attributes:
        rows, width: of the linear map (rows, width) -> (rows, width); as in a large VAR's last
            scale, guided, two images.
        channels, side: of the 3x3 convolution's map.
        square: side of the matrices on a GPU.
    """

    rows: int = 1024
    width: int = 1024
    channels: int = 160
    side: int = 128
    square: int = 8192


def describe(device: torch.device) -> str:
    """Return the name of a device, with what decides its speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@torch.inference_mode()
def measure(
    device: torch.device,
    sizes: Sizes | None = None,
    repeats: int = 5,
    clock: Clock = perf_counter,
) -> list[Rate]:
    """Return the rates of a device: medians of products that were taken in turns."""
    products = (_gpu if device.type == "cuda" else _cpu)(device, sizes or Sizes())
    finish = finisher(device)
    times: list[list[float]] = [[] for _ in products]
    for _ in range(1 + repeats):  # the first of each is a warm-up
        for product, taken in zip(products, times, strict=True):
            finish()
            start = clock()
            product.compute()
            finish()
            taken.append(clock() - start)
    return [
        Rate(p.name, p.precision, p.operations / median(taken[1:]))
        for p, taken in zip(products, times, strict=True)
    ]


def best(rates: Sequence[Rate], precision: str | None) -> float:
    """Return the best rate in a number type, operations per second; of all, if there is none."""
    own = [rate.flops for rate in rates if rate.precision == precision]
    return max(own or [rate.flops for rate in rates])


def _cpu(device: torch.device, sizes: Sizes) -> list[Product]:
    products: list[Product] = []
    count = 2 * sizes.rows * sizes.width**2
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        new = partial(torch.randn, device=device, dtype=dtype)
        x, w = new(sizes.rows, sizes.width), new(sizes.width, sizes.width)
        products.append(Product("linear", precision, count, partial(F.linear, x, w)))
        name = "linear as a channels-last 1x1 convolution"
        products.append(Product(name, precision, count, partial(_as_convolution, x, w)))
        if packed_is_faster(dtype):
            compute = partial(packed_linear, x, packed(w))
            products.append(Product("linear, packed weights", precision, count, compute))
        products += _convolutions(precision, new, sizes)
    return products


def _as_convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.t()[None, :, :, None], weight[:, :, None, None])


def _convolutions(precision: str, new: Callable[..., Tensor], sizes: Sizes) -> Iterator[Product]:
    channels, side = sizes.channels, sizes.side
    image, kernel = new(1, channels, side, side), new(channels, channels, 3, 3)
    count = 2 * 9 * channels**2 * side**2
    for name, layout in (
        ("contiguous", torch.contiguous_format),
        ("channels last", torch.channels_last),
    ):
        x, w = image.to(memory_format=layout), kernel.to(memory_format=layout)
        compute = partial(F.conv2d, x, w, padding=1)
        yield Product(f"3x3 convolution, {name}", precision, count, compute)


def _gpu(device: torch.device, sizes: Sizes) -> list[Product]:
    side = sizes.square
    products: list[Product] = []
    for precision, dtype in (
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("tf32", torch.float32),
        ("fp32", torch.float32),
    ):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        compute = partial(_product, a, b, "high" if precision == "tf32" else "highest")
        products.append(Product("matmul", precision, 2 * side**3, compute))
    return products


def _product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    with _matmul_precision(precision):
        return a @ b


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # where Linux keeps the name
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
