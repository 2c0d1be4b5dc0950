"""Caches of codes: what is read is what was written, or it is said what is wrong with it."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.conftest import make_run
from tests.data.drawing import Drawing
from var.data.batches import Batches, loader
from var.data.images import TensorImages
from var.data.index import Index, Shard
from var.data.latents import Latents, latents
from var.digests import fingerprint
from var.encoding import Encoder, Folder
from var.errors import UserError
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer

SCHEDULE = Schedule.scales([1, 2, 4])
Write = Callable[..., Path]


@pytest.fixture
def data() -> TensorImages:
    """Seven images of 8x8 pixels in three classes."""
    pixels = torch.randint(0, 256, (7, 8, 8), generator=torch.Generator().manual_seed(0))
    return TensorImages("toy", pixels.byte(), torch.arange(7) % 3, ["cat", "no", "T-shirt/top"])


@pytest.fixture
def write(data: TensorImages, tmp_path: Path) -> Write:
    """Write a cache of the images, three in a shard, and return its folder."""

    def written(
        tokenizer: Tokenizer, shape: tuple[int, ...], numbers: str, flips: bool = False
    ) -> Path:
        index = Index(
            data="toy", split="train", source="a1", size=8,
            classes=tuple(data.classes), images=7, flips=flips,
            shard_size=3, numbers=numbers, shape=shape, grids=SCHEDULE.grids,
            tokenizer=fingerprint(tokenizer),  # type: ignore[arg-type]
        )  # fmt: skip
        folder, kind = Folder(tmp_path / "cache", index), getattr(torch, numbers)
        encoder = Encoder(tokenizer, SCHEDULE, flips, kind, torch.device("cpu"))
        for number, batches in enumerate(encoder.shards(data, folder.parts, 2)):
            codes, labels = zip(*batches, strict=True)
            folder.add(number, torch.cat(codes), torch.cat(labels))
        folder.finish()
        return folder.root

    return written


@pytest.fixture
def ids(write: Write) -> Path:
    """A cache of ids."""
    return write(make_run().tokenizer, (21,), "uint8")


def test_a_generator_reads_of_ids_what_it_would_read_of_pixels(
    ids: Path, data: TensorImages
) -> None:
    tokenizer: Tokenizer = make_run().tokenizer  # type: ignore[assignment]
    cache = latents(root=ids)
    reader = cache.reader(tokenizer, SCHEDULE)
    numbers, rng = list(islice(Batches(7, 5, 0), 3)), Rng.batch(0, 5)
    for pixels, codes in zip(loader(data, numbers), loader(cache, numbers), strict=True):
        ours = reader.encode(codes.image, SCHEDULE, rng)
        theirs = tokenizer.encode(pixels.image, SCHEDULE, rng)
        assert [each.shape for each in ours] == [(5, 1), (5, 4), (5, 16)]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(codes.label, pixels.label)


@pytest.mark.parametrize(("numbers", "tolerance"), [("float32", 0), ("float16", 1e-3)])
def test_values_come_back_and_are_drawn_from_as_before(
    write: Write, data: TensorImages, numbers: str, tolerance: float
) -> None:
    tokenizer: Tokenizer = Drawing()  # type: ignore[assignment]
    cache = latents(root=write(tokenizer, (3, 4, 4), numbers))
    pixels, codes = (source.__getitems__(range(7)).image for source in (data, cache))
    assert codes.dtype == torch.float32
    ours = cache.reader(tokenizer, SCHEDULE).encode(codes, SCHEDULE, Rng.batch(5, 7))
    theirs = tokenizer.encode(pixels, SCHEDULE, Rng.batch(5, 7))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def test_with_flips_each_image_is_there_plain_and_mirrored(
    write: Write, data: TensorImages
) -> None:
    tokenizer: Tokenizer = Drawing()  # type: ignore[assignment]
    cache = latents(root=write(tokenizer, (3, 4, 4), "float32", flips=True))
    image, label = data.__getitems__(range(7))
    codes, labels = cache.__getitems__(range(14))
    assert len(cache) == 14 and labels.tolist() == label.repeat_interleave(2).tolist()
    assert torch.equal(codes[::2], tokenizer.compress(image, SCHEDULE))
    assert torch.equal(codes[1::2], tokenizer.compress(image.flip(-1), SCHEDULE))
    assert not torch.equal(codes[::2], codes[1::2])


def test_entries_come_in_any_order_and_go_on_through_the_epochs(ids: Path) -> None:
    cache = latents(root=ids)
    whole = cache.__getitems__(range(7))
    some = cache.__getitems__([6, 7, 3, 2, 14 + 5, 3])
    assert torch.equal(some.image, whole.image[[6, 0, 3, 2, 5, 3]])
    assert torch.equal(some.label, whole.label[[6, 0, 3, 2, 5, 3]])
    assert some.image.dtype == some.label.dtype == torch.int64
    assert (cache.name, cache.size, cache.classes) == ("toy", 8, ("cat", "no", "T-shirt/top"))


def test_it_can_be_sent_to_another_process_open_or_not(ids: Path) -> None:
    cache = latents(root=ids, workers=2)
    before = cache.__getitems__(range(7)).image
    assert torch.equal(pickle.loads(pickle.dumps(cache)).__getitems__(range(7)).image, before)
    read = [batch.image for batch in loader(cache, [[0, 1], [2, 3], [4, 5, 6]])]
    assert torch.equal(torch.cat(read), before)


def damage(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("act", "message"), [(damage, "damaged"), (shorten, "damaged"), (Path.unlink, "missing")]
)
def test_a_shard_that_is_not_as_it_was_is_named_with_the_remedy(
    ids: Path, act: Callable[[Path], None], message: str
) -> None:
    act(ids / "00001.safetensors")
    with pytest.raises(UserError, match=f"00001.safetensors is {message}.*var-encode again"):
        latents(root=ids)


def test_without_verifying_damage_is_seen_where_it_is_read_if_at_all(ids: Path) -> None:
    shorten(ids / "00001.safetensors")
    cache = latents(root=ids, verify=False)
    cache.__getitems__([0, 6])
    with pytest.raises(UserError, match=r"00001.safetensors is damaged.*var-encode again"):
        cache.__getitems__([0, 3])


def test_only_one_process_of_a_machine_verifies(ids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(ids / "00001.safetensors")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert len(latents(root=ids)) == 7


def test_another_tokenizer_is_refused(ids: Path) -> None:
    tokenizer = make_run().tokenizer
    with torch.no_grad():
        tokenizer.get_parameter("quantizer.codebook.weight")[0, 0] += 1e-3
    with pytest.raises(UserError, match=r"made by another tokenizer \(.{8}…, not .{8}…\)"):
        latents(root=ids).reader(tokenizer, SCHEDULE)  # type: ignore[arg-type]


def test_another_schedule_is_refused_unless_the_tokenizer_serves_any_with_its_last_grid(
    ids: Path, write: Write
) -> None:
    other, tokenizer = Schedule.scales([1, 3, 4]), make_run().tokenizer
    with pytest.raises(UserError, match=r"made for the grids .*\(2, 2\).* not .*\(3, 3\)"):
        latents(root=ids).reader(tokenizer, other)  # type: ignore[arg-type]
    any_schedule: Tokenizer = Drawing()  # type: ignore[assignment]
    for path in ids.iterdir():
        path.unlink()
    cache = latents(root=write(any_schedule, (3, 4, 4), "float16"))
    codes = cache.__getitems__([0, 1]).image
    sizes = [each.shape[1] for each in cache.reader(any_schedule, other).encode(codes, other)]
    assert sizes == [1, 9, 16]
    with pytest.raises(UserError, match="made for the grids"):
        cache.reader(any_schedule, Schedule.scales([1, 2]))


def test_an_index_is_read_as_it_was_written() -> None:
    shards = Shard("00000.safetensors", 4, "cd"), Shard("00001.safetensors", 2, "ef")
    index = Index(
        "toy", "train", "a1", 8, ("no", "1", "café: ☕"), 3, True, 2, "int16", (3, 4),
        ((1, 1), (2, 3)), "ab", shards,
    )  # fmt: skip
    assert Index.parse(index.text(), "here") == index
    assert index.differences(replace(index, flips=False, shards=())) == ["flips True, not False"]


def test_the_index_of_a_raster_names_its_grid_once_and_older_ones_are_of_scales() -> None:
    index = Index("toy", "train", "a1", 8, (), 3, True, 2, "int16", (6,), ((2, 3),), "ab")
    raster = replace(index, raster=True)
    assert "raster" not in index.text(), "as it was when there were no rasters"
    assert Index.parse(raster.text(), "here") == raster
    assert (index.schedule, raster.schedule) == (Schedule.scales([(2, 3)]), Schedule.raster((2, 3)))
    assert index.differences(raster) == ["raster False, not True"]
    with pytest.raises(UserError, match="here is damaged"):
        Index.parse(replace(raster, grids=((2, 3), (4, 4))).text(), "here")


def test_a_cache_of_scales_is_not_read_as_a_raster_of_many_lines(ids: Path) -> None:
    reader = latents(root=ids).reader
    with pytest.raises(UserError, match=r"for the grids \[.*\], not the raster of \(64, 64\):"):
        reader(make_run().tokenizer, Schedule.raster(64))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format: 1", "format: 2", "of format 2, and this version of var reads 1"),
        ("images: 7", "images: 8", "shards do not make up 8"),
        ("numbers: uint8", "numbers: load", "damaged"),
        ("split: train", "colour: red", "damaged"),
        ("size: 8", "size: [", "damaged"),
        ("{file", "{fill", "damaged"),
    ],
)
def test_an_index_at_fault_is_told_in_one_line(ids: Path, old: str, new: str, message: str) -> None:
    path = ids / "cache.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        latents(root=ids)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_where_there_is_no_cache_or_none_yet_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no cache.yaml: make a cache with var-encode"):
        latents(root=tmp_path)
    (tmp_path / ".progress").mkdir()
    with pytest.raises(UserError, match="not finished: run var-encode again"):
        latents(root=tmp_path)


def test_codes_are_mapped_not_loaded(tmp_path: Path) -> None:
    def resident() -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
        return int(line.split()[1])

    if not Path("/proc/self/status").exists():
        pytest.skip("asks Linux how much memory is taken")
    count = 200_000
    index = Index(
        "toy", "train", "a1", 8, ("a",), count, False, count, "int16", (100,), ((1, 1),), "ab"
    )
    folder = Folder(tmp_path, index)
    folder.add(0, torch.ones(count, 100, dtype=torch.int16), torch.zeros(count, dtype=torch.int64))
    cache = Latents(tmp_path, folder.finish())
    before = resident()
    assert cache.__getitems__(range(0, count, 1000)).image.sum() == 20_000
    assert resident() - before < 8_000, "of 40 MB"
