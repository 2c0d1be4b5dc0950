"""Images in npz files, one's own and those of others, and CIFAR-10 in both of its layouts."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.odd import picture
from var.data.arrays import cifar10, npz
from var.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 0, 2, 1])


def jpegs(count: int) -> dict[str, np.ndarray]:
    """Return the arrays of some JPEG files one after the other."""
    files = []
    for i in range(count):
        picture(i, (32, 32)).save(file := io.BytesIO(), "JPEG")
        files.append(file.getvalue())
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.arange(count) % 3,
        "class_names": np.array(["cat", "dog", "emu"]),
    }


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("arr_0", "arr_1")])
@pytest.mark.parametrize("pixels", [GREY, COLOUR])
def test_arrays_are_read_as_they_are(
    tmp_path: Path, pixels: np.ndarray, images: str, labels: str
) -> None:
    np.savez(tmp_path / "test.npz", **{images: pixels, labels: LABELS})
    data = npz(root=tmp_path, train=False, name="mine")
    image, label = data.__getitems__([4, 0, 6 + 1])
    colour = np.broadcast_to(pixels.reshape(6, 5, 5, -1), (6, 5, 5, 3))[[4, 0, 1]]
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(colour).permute(0, 3, 1, 2))
    assert label.tolist() == [2, 0, 2] and label.dtype == torch.int64 and image.is_contiguous()
    assert (data.name, data.size, len(data), data.classes) == ("mine", 5, 6, ["0", "1", "2"])


def test_without_labels_there_is_one_class_and_names_are_taken_where_they_are(
    tmp_path: Path,
) -> None:
    np.savez_compressed(tmp_path / "own.npz", images=GREY)
    data = npz(root=tmp_path / "own.npz")
    assert data.classes == ["0"] and not data.labels.any()
    np.savez(tmp_path / "train.npz", images=GREY, labels=LABELS, class_names=["a", "b", "c", "d"])
    assert npz(root=tmp_path).classes == ["a", "b", "c", "d"]


def test_half_of_the_training_images_are_mirrored_and_which_is_a_function_of_the_number(
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "both.npz", images=COLOUR)
    data = npz(root=tmp_path / "both.npz", seed=3)
    plain = data.plain().__getitems__(range(600)).image
    image = data.__getitems__(range(600)).image
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(image, plain, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(image, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 250 < sum(mirrored) < 350
    assert torch.equal(data.__getitems__([77, 5]).image, image[[77, 5]])
    assert not torch.equal(npz(root=tmp_path / "both.npz").__getitems__(range(600)).image, image)
    assert data.digest() == data.plain().digest() and data.flip
    for still in (npz(root=tmp_path / "both.npz", train=False), data.plain()):
        assert torch.equal(still.__getitems__(range(600)).image, plain) and still.plain() is still


def test_jpeg_files_one_after_the_other_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    arrays = jpegs(5)
    np.savez(tmp_path / "cifar10/cifar10_train.npz", **arrays)
    np.savez(tmp_path / "cifar10/cifar10_test.npz", **jpegs(2))
    for root in (tmp_path, tmp_path / "cifar10"):
        data = cifar10(root=root, flip=False)
        start, stop = arrays["offsets"][3:5]
        with Image.open(io.BytesIO(arrays["jpeg"][start:stop].tobytes())) as image:
            expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal((data.__getitems__([3]).image[0] * 255).round().byte(), expected)
        assert data.classes == ["cat", "dog", "emu"] and data.name == "cifar10"
        assert len(cifar10(root=root, train=False)) == 2


def test_the_original_files_are_read_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.random.default_rng(2).integers(0, 256, (12, 3072), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        part = {"data": rows[2 * i : 2 * i + 2], "labels": [i, 9]}
        (folder / name).write_bytes(pickle.dumps(part))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    data, test = cifar10(root=tmp_path, flip=False), cifar10(root=tmp_path, train=False)
    image, label = data.__getitems__(range(10))
    assert torch.equal((image * 255).round().byte().flatten(1), torch.from_numpy(rows[:10]))
    assert label.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and len(test) == 2
    assert data.classes == list("abcdefghij")


def test_missing_cifar_is_told_in_one_line_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*data\.download=true"):
        cifar10(root=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": GREY}, "holds pictures: it needs images"),
        ({"images": GREY.astype(np.float32)}, r"images in .* are float32 \(6, 5, 5\)"),
        ({"images": GREY[:, :4]}, r"are uint8 \(6, 4, 5\)"),
        ({"images": COLOUR[..., :2]}, r"are uint8 \(6, 5, 5, 2\)"),
        ({"images": GREY, "labels": LABELS[:5]}, r"labels in .* are int64 \(5,\).* 6 images"),
        ({"images": GREY, "labels": LABELS / 2}, r"labels in .* are float64"),
        ({"images": GREY, "labels": LABELS - 1}, r"not in 0 \.\.\. 1"),
        ({"images": GREY, "labels": LABELS, "class_names": ["a"]}, r"not in 0 \.\.\. 0"),
        ({"images": np.array([None])}, "cannot read .*train.npz .*pickle"),
        ({**jpegs(2), "offsets": np.array([0, 9, 20])}, "jpeg in .* damaged, image 0"),
    ],
)
def test_an_array_at_fault_is_named_with_its_file(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        npz(root=tmp_path)
    assert str(tmp_path / "train.npz") in str(error.value) and "\n" not in str(error.value)


def test_a_file_at_fault_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*train\.npz"):
        npz(root=tmp_path)
    path = tmp_path / "train.npz"
    for content in (b"", b"text", b"PK\x03\x04half"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*train\.npz"):
            npz(root=tmp_path)
    np.save(tmp_path / "one.npy", GREY)
    with pytest.raises(UserError, match=r"cannot read .*one\.npy"):
        npz(root=tmp_path / "one.npy")
    np.savez(path, images=np.zeros((50, 64, 64), np.uint8))
    blob = bytearray(path.read_bytes())
    blob[5000] ^= 1
    path.write_bytes(blob)
    with pytest.raises(UserError, match=r"cannot read .*train\.npz"):
        npz(root=tmp_path)
    assert zipfile.is_zipfile(path), "only what is in it is damaged"
