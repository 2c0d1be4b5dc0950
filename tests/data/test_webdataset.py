"""Tar files of images: the same images as in folders, found by an index, odd ones told."""

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.odd import picture
from var.data.batches import Batches, loader
from var.data.folder import image_folder
from var.data.webdataset import Shards, webdataset
from var.errors import UserError

Member = tuple[str, bytes]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    image.save(file := io.BytesIO(), kind)
    return file.getvalue()


def shard(path: Path, members: Sequence[Member]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(i: int) -> list[Member]:
    """Return image i and its class, said in one of two ways."""
    label = ("cls", f"{i % 3}\n") if i % 2 else ("json", json.dumps({"label": i % 3, "text": "?"}))
    content = encoded(picture(i))
    return [(f"set/{i:04d}.{label[0]}", label[1].encode()), (f"set/{i:04d}.png", content)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eleven training images in three shards, two test images."""
    for which, part in enumerate((range(4), range(4, 8), range(8, 11))):
        members = [member for i in part for member in sample(i)]
        shard(tmp_path / f"tars/train-{which:03d}.tar", members)
    shard(tmp_path / "tars/val-000.tar", [*sample(0), *sample(1)])
    return tmp_path / "tars"


def images(root: Path, **changes: object) -> Shards:
    return webdataset(**{"root": root, "train": True, "size": 16, **changes})  # type: ignore[arg-type]


def test_members_are_read_as_files_in_folders_would_be(root: Path, tmp_path: Path) -> None:
    for i in range(11):
        path = tmp_path / f"folders/{i % 3}/{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i)))
    tars, folders = images(root), image_folder(root=tmp_path / "folders", train=False, size=16)
    assert tars.labels.tolist() == [i % 3 for i in range(11)] and tars.classes == ["0", "1", "2"]
    order = sorted(range(11), key=lambda i: (i % 3, i))
    ours, theirs = tars.plain().__getitems__(order), folders.__getitems__(range(11))
    assert torch.equal(ours.image, theirs.image) and torch.equal(ours.label, theirs.label)
    test = images(root, train=False)
    assert len(test) == 2 and test.classes == tars.classes and test.crop is None


def test_a_resumed_run_reads_the_same_with_any_number_of_workers(root: Path) -> None:
    whole = list(islice(loader(images(root), Batches(11, 3, 0)), 6))
    rest = loader(images(root, workers=2), Batches(11, 3, 0, start=2))
    for batch, again in zip(whole[2:], rest, strict=False):
        assert torch.equal(batch.image, again.image) and torch.equal(batch.label, again.label)
    data = images(root)
    again = pickle.loads(pickle.dumps(data)).__getitems__([8, 13])
    assert torch.equal(again.image, data.__getitems__([8, 13]).image)


def test_shards_are_looked_through_once_and_again_when_they_change(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, scan = list[str](), tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path, mode: looked.append(path) or scan(path, mode))
    first = images(root)
    assert len(looked) == 3 and (root / "index-train-000.npz").is_file()
    assert images(root).digest() == first.digest() and len(looked) == 3
    with monkeypatch.context() as patch:
        patch.undo()
        shard(root / "train-002.tar", sample(9))
    looked.clear()
    monkeypatch.setattr(tarfile, "open", lambda path, mode: looked.append(path) or scan(path, mode))
    assert len(images(root)) == 9 and len(looked) == 3
    (root / "index-train-000.npz").write_bytes(b"damaged")
    assert len(images(root)) == 9 and len(looked) == 6


def test_where_the_index_cannot_be_written_it_is_kept_in_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    data = images(root)
    assert len(data) == 11 and data.__getitems__([10]).label.tolist() == [1]
    assert not (root / "index-train-000.npz").exists()


def test_what_is_odd_is_left_aside_and_told(root: Path, tmp_path: Path) -> None:
    good = [member for i in range(4) for member in sample(i)]
    odd: list[Member] = [
        ("a.png", encoded(picture())), ("b.cls", b"cat"), ("b.png", encoded(picture())),
        ("c.json", b'{"caption": "a cat"}'), ("c.JPG", encoded(picture(), "JPEG")),
        ("d.cls", b"1"), ("e.seg.png", encoded(picture())), ("e.cls", b"1"),
        ("f.png", b"no image"), ("f.cls", b"2"),
        ("g.json", b"{}"), ("g.webp", encoded(picture(), "WEBP")), ("g.cls", b"0"),
    ]  # fmt: skip
    tars = tmp_path / "odd"
    shard(tars / "0.tar", good + odd)
    shard(tars / "1.tar", good)
    with tarfile.open(tars / "1.tar") as tar:
        third = tar.getmembers()[4].offset
    (tars / "1.tar").write_bytes((tars / "1.tar").read_bytes()[: third + 100])
    for _ in range(2):  # looked through, and from the index
        data = images(tars, train=False)
        assert len(data) == 4 + 2 + 2
        whys = {path.removeprefix(f"{tars}/"): why for path, why in data.unusable.items()}
        assert whys.keys() == {"0.tar/a.png", "0.tar/b.png", "0.tar/c.JPG", "1.tar"}
        assert whys["0.tar/a.png"] == "no label, .cls or .json" and "damaged" in whys["1.tar"]
        assert "its label is no number" in whys["0.tar/b.png"] and whys["0.tar/c.JPG"]
    assert len(data.plain().__getitems__(range(8)).label) == 7
    assert len(data.__getitems__(range(8)).label) == 8
    assert data.unusable[f"{tars}/0.tar/f.png"] == "not an image"


def test_a_damaged_header_in_the_middle_does_not_pass_for_the_end(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", [member for i in range(4) for member in sample(i)])
    blob = bytearray((tmp_path / "0.tar").read_bytes())
    with tarfile.open(tmp_path / "0.tar") as tar:
        third = tar.getmembers()[4].offset
    blob[third + 150] ^= 1  # in its checksum
    (tmp_path / "0.tar").write_bytes(blob)
    data = images(tmp_path)
    assert len(data) == 2 and "no header" in data.unusable[f"{tmp_path}/0.tar"]


def test_names_and_number_of_classes_can_be_given(root: Path, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("index,name\n0,cat\n1,dog\n2,emu\n3,fox\n")
    data = images(root, train=False, classes=4, names=tmp_path / "names.csv")
    assert data.classes == ["cat", "dog", "emu", "fox"]


def test_bad_input_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class 2, but there are 2 classes.*data.classes="):
        images(root, classes=2)
    with pytest.raises(UserError, match="no tar files in data.root="):
        images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="data.unusable=drop: use skip or raise"):
        images(root, unusable="drop")
    (root / "val-000.tar").unlink()
    assert len(images(root)) == 11, "who trains needs no test images"
    with pytest.raises(UserError, match=r"no val\*\.tar beside train-000\.tar"):
        images(root, train=False)
    shard(tmp_path / "empty/0.tar", [])
    with pytest.raises(UserError, match="no images with labels in .*0.tar"):
        images(tmp_path / "empty")


def test_the_config_makes_both_splits(root: Path) -> None:
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate

    with initialize_config_module("var.configs", version_base="1.3"):
        cfg = compose("encode", ["data=webdataset", f"data.root={root}", "data.size=16",
                                 "tokenizer.run=x", "out=x"])  # fmt: skip
    train, test = instantiate(cfg.data.train), instantiate(cfg.data.test)
    assert (len(train), len(test), train.workers, train.size) == (11, 2, 4, 16)
