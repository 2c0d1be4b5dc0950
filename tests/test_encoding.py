"""Writing caches: stopped and gone on with, shared out, and refused where it would mix."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import make_run
from tests.data.drawing import Drawing
from var.data.images import TensorImages
from var.data.index import Index
from var.data.latents import latents
from var.devices import share
from var.digests import fingerprint
from var.encoding import Encoder, Folder, number_type
from var.errors import UserError
from var.schedule import Schedule

SCHEDULE = Schedule.scales([1, 2, 4])
CPU = torch.device("cpu")


def images() -> TensorImages:
    """Eleven images of 8x8 pixels."""
    pixels = torch.randint(0, 256, (11, 8, 8), generator=torch.Generator().manual_seed(0))
    return TensorImages("toy", pixels.byte(), torch.arange(11), list("abcdefghijk"))


def index(tokenizer: Drawing) -> Index:
    return Index(
        data="toy", split="train", source="a1", size=8,
        classes=tuple("abcdefghijk"), images=11, flips=True,
        shard_size=4, numbers="float16", shape=(3, 4, 4), grids=SCHEDULE.grids,
        tokenizer=fingerprint(tokenizer),
    )  # fmt: skip


def make(folder: Folder, numbers: list[int], tokenizer: Drawing, batch_size: int = 3) -> None:
    encoder = Encoder(tokenizer, SCHEDULE, True, torch.float16, CPU)
    parts = [folder.parts[number] for number in numbers]
    for number, batches in zip(numbers, encoder.shards(images(), parts, batch_size), strict=True):
        codes, labels = zip(*batches, strict=True)
        folder.add(number, torch.cat(codes), torch.cat(labels))


def files(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files of a cache that was written in one go."""
    folder = Folder(tmp_path / "whole", index(Drawing()))
    assert folder.missing() == [0, 1, 2] and folder.parts == [range(4), range(4, 8), range(8, 11)]
    make(folder, [0, 1, 2], Drawing())
    folder.finish()
    return files(folder.root)


def test_a_finished_cache_holds_shards_and_index_and_nothing_else(whole: dict[str, bytes]) -> None:
    assert sorted(whole) == [*(f"{i:05d}.safetensors" for i in range(3)), "cache.yaml"]


class Stop(Exception):
    """What kills a run."""


def test_a_run_that_was_killed_goes_on_and_makes_the_same_files(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, tokenizer, compress = tmp_path / "killed", Drawing(), Drawing.compress

    def killing(self: Drawing, image: torch.Tensor, schedule: Schedule) -> torch.Tensor:
        if self.compressed >= 14:  # in the second shard, each has four images, seen twice
            raise Stop
        return compress(self, image, schedule)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Drawing, "compress", killing)
        folder = Folder(root, index(tokenizer))
        make(folder, folder.missing(), tokenizer)
    assert "00000.safetensors" in files(root) and "cache.yaml" not in files(root)
    with pytest.raises(UserError, match="not finished"):
        latents(root=root)

    folder, again = Folder(root, index(tokenizer)), Drawing()
    assert folder.missing() == [1, 2]
    make(folder, folder.missing(), again)
    folder.finish()
    assert again.compressed == 2 * 7 and files(root) == whole


def test_a_shard_without_a_note_or_with_another_checksum_is_made_again(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    root = tmp_path / "whole"
    blob = bytearray(whole["00001.safetensors"])
    blob[-1] ^= 1
    (root / "00001.safetensors").write_bytes(blob)
    (root / "00002.safetensors").unlink()
    folder = Folder(root, index(Drawing()))
    assert folder.missing() == [1, 2]
    make(folder, [1], Drawing())
    assert Folder(root, index(Drawing())).missing() == [2], "what was repaired stays so"
    make(folder, [2], Drawing())
    folder.finish()
    assert files(root) == whole

    (root / "cache.yaml").unlink()
    assert Folder(root, index(Drawing())).missing() == [0, 1, 2]


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_shares_of_all_processes_make_up_the_same_files(
    tmp_path: Path, whole: dict[str, bytes], processes: int
) -> None:
    folders = [Folder(tmp_path / "shared", index(Drawing())) for _ in range(processes)]
    todo = folders[0].missing()
    for rank, folder in reversed([*enumerate(folders)]):
        make(folder, [todo[i] for i in share(len(todo), rank, processes)], Drawing())
    folders[0].finish()
    assert files(tmp_path / "shared") == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flips": False}, "flips True, not False"),
        ({"split": "test"}, "split train, not test"),
        ({"shard_size": 5}, "shard_size 4, not 5"),
        ({"grids": ((4, 4),)}, "grids"),
        ({"tokenizer": "other"}, "tokenizer .*, not other"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_run_into_the_same_folder_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str, finished: bool
) -> None:
    folder = Folder(tmp_path, index(Drawing()))
    make(folder, folder.missing(), Drawing())
    if finished:
        folder.finish()
    before = files(tmp_path)
    with pytest.raises(UserError, match=f"other settings .{message}.*another out=…, or delete it"):
        Folder(tmp_path, replace(index(Drawing()), **changes))  # type: ignore[arg-type]
    assert files(tmp_path) == before


def test_what_a_shard_lacks_is_kept_with_it_and_listed_when_all_is_done(tmp_path: Path) -> None:
    whole = replace(index(Drawing()), flips=False)
    folder, code = Folder(tmp_path / "cache", whole), torch.ones(11, 3, 4, 4, dtype=torch.float16)
    folder.add(0, code[:3], torch.arange(3), [("a/2.png", "not an image")])
    folder.add(1, code[:0], torch.arange(0), [(f"b/{i}.png", "1x1, café") for i in range(4)])
    again = Folder(tmp_path / "cache", whole)
    assert again.missing() == [2], "what was found before counts as done"
    again.add(2, code[:3], torch.arange(3))
    finished = again.finish({"c/photo.dat": "renamed"})
    assert (finished.entries, finished.images, len(finished.unusable)) == (6, 11, 5)
    cache = latents(root=tmp_path / "cache")
    assert cache.index == finished and len(cache) == 6
    assert cache.__getitems__(range(6)).label.tolist() == [0, 1, 2, 0, 1, 2]
    lines = (tmp_path / "cache/unusable.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["path,reason", "a/2.png,not an image"]
    assert lines[2] == 'b/0.png,"1x1, café"' and len(lines) == 7
    assert Folder(tmp_path / "cache", whole).missing() == []


def test_a_value_too_large_for_half_precision_is_one_line_with_the_remedy() -> None:
    batch = images().__getitems__([0, 1])
    for numbers in (torch.float16, torch.float32):
        code, label = Encoder(Drawing(6e4), SCHEDULE, True, numbers, CPU).codes(batch)
        assert code.isfinite().all() and label.tolist() == [0, 0, 1, 1]
    with pytest.raises(
        UserError, match=r"code of .*e\+05 is too large for .*float16: use dtype=fp32"
    ):
        Encoder(Drawing(1e6), SCHEDULE, False, torch.float16, CPU).codes(batch)
    with pytest.raises(UserError, match="not finite"):
        Encoder(Drawing(torch.nan), SCHEDULE, False, torch.float16, CPU).codes(batch)


@pytest.mark.parametrize(
    ("vocabulary", "kind"),
    [(256, "uint8"), (257, "int16"), (32768, "int16"), (32769, "int32"), (None, "int32")],
)
def test_ids_are_kept_as_small_as_the_vocabulary_allows(vocabulary: int | None, kind: str) -> None:
    class Ids(Drawing):
        terms = {"vocabulary": vocabulary} if vocabulary else {}  # type: ignore[assignment]

    code = torch.zeros(1, 3, dtype=torch.int64)
    assert number_type(Ids(), code, torch.float16) == getattr(torch, kind)
    assert number_type(Ids(), code.float(), torch.float16) == torch.float16


def test_a_fingerprint_knows_every_weight_and_no_device_or_layout() -> None:
    tokenizer = make_run().tokenizer
    known = fingerprint(tokenizer)
    assert known == fingerprint(make_run().tokenizer) != fingerprint(make_run(1).tokenizer)
    assert known == fingerprint(tokenizer.to(memory_format=torch.channels_last))
    for name in ("decoder.conv_out.bias", "quantizer.codebook.weight"):
        other = make_run().tokenizer
        with torch.no_grad():
            other.get_parameter(name).view(-1)[-1] += 1e-3
        assert fingerprint(other) != known


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file"):
        Folder(tmp_path / "file", index(Drawing())).missing()
