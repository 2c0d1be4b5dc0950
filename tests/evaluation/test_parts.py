"""Folders of parts: what is there is not made again, what does not fit is refused."""

from pathlib import Path

import pytest
import torch

from var.errors import UserError
from var.evaluation.parts import Parts, differences

SETTINGS = {"model": "a", "sampling": {"top_k": 0, "guidance": (1.0, 2.0)}}


def made(root: Path, **changes: object) -> Parts:
    return Parts(root, {**SETTINGS, **changes}, count=7, size=3)


def fill(parts: Parts, *numbers: int) -> None:
    for number in numbers:
        here = parts.ranges[number]
        parts.add(
            number, {"x": torch.arange(here.start, here.stop), "label": torch.ones(len(here))}, n=1
        )


def test_parts_are_collected_in_order_whoever_made_them(tmp_path: Path) -> None:
    parts = made(tmp_path)
    assert parts.missing() == [0, 1, 2]
    fill(parts, 2, 0, 1)
    assert made(tmp_path).missing() == []
    found = made(tmp_path).collected(leave=("label",))
    assert list(found) == ["x"] and torch.equal(found["x"], torch.arange(7))
    assert list(parts.notes()) == [{"n": 1}] * 3
    assert torch.equal(parts.one(4, "x"), torch.tensor([4]))


def test_what_is_missing_or_damaged_is_made_again(tmp_path: Path) -> None:
    parts = made(tmp_path)
    parts.missing()
    fill(parts, 0, 1)
    with pytest.raises(UserError, match="00002.safetensors is missing"):
        parts.collected()
    (tmp_path / "00001.safetensors").write_bytes(b"cut short")
    assert made(tmp_path).missing() == [1, 2]
    blob = bytearray((tmp_path / "00000.safetensors").read_bytes())
    blob[-1] ^= 1  # a single bit of the data
    (tmp_path / "00000.safetensors").write_bytes(blob)
    assert made(tmp_path).missing() == [0, 1, 2]


def test_parts_that_lack_what_is_needed_are_made_again(tmp_path: Path) -> None:
    parts = made(tmp_path)
    fill(parts, 0, 1, 2)
    assert parts.missing(["x"]) == [] and parts.missing(["x", "image"]) == [0, 1, 2]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    made(tmp_path).missing()
    with pytest.raises(UserError, match=r"sampling.top_k is 0 there, 5 here.*out="):
        made(tmp_path, sampling={"top_k": 5, "guidance": [1.0, 2.0]})
    made(tmp_path, sampling={"top_k": 0, "guidance": [1.0, 2.0]})
    with pytest.raises(UserError, match="images is 7 there, 8 here"):
        Parts(tmp_path, SETTINGS, count=8, size=3)


def test_parts_of_other_settings_do_not_count(tmp_path: Path) -> None:
    parts = made(tmp_path)
    parts.missing()
    fill(parts, 0, 1, 2)
    (tmp_path / "settings.json").unlink()
    assert made(tmp_path, model="b").missing() == [0, 1, 2]


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match="settings.json is damaged"):
        made(tmp_path)


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x of images 0..2 are not finite"):
        made(tmp_path).add(0, {"x": torch.tensor([1.0, float("nan")])})


def test_differences_are_found_at_any_depth() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert list(differences(old, new)) == [
        "a.c is 2 there, 4 here",
        "d is 3 there, null here",
        "e is null there, 5 here",
    ]
