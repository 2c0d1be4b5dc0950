"""The pipeline: labels, seeds, batches and where runs come from."""

import logging
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import var
from tests.conftest import RUNS
from var import drawing, hub
from var.cache.dense import Dense
from var.decoding.base import Turn
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.nn import linear
from var.nn.linear import Linear
from var.pipeline import Pipeline
from var.random import Rng
from var.sampling import Sampling
from var.store import Run
from var.systems.base import Checkpoint, Parts
from var.tokenizers.tokenizer import Canvas

pytestmark = RUNS


@pytest.fixture
def pipe(tiny_run: Run) -> Pipeline:
    return Pipeline(tiny_run)


def close(ours: Tensor, theirs: Tensor) -> None:
    # Sums over a batch of another size may be taken in another order.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_images_are_ordinary_tensors_of_zero_to_one(pipe: Pipeline) -> None:
    images = pipe([0, 1, 2], number=2)
    assert images.shape == (6, 3, 8, 8) and images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert not images.is_inference() and not images.requires_grad


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_images_do_not_depend_on_the_batch_size(pipe: Pipeline, batch_size: int) -> None:
    close(pipe([0, 1], number=4, batch_size=batch_size), pipe([0, 1], number=4))


def test_an_image_is_the_same_alone_and_among_others(pipe: Pipeline) -> None:
    close(pipe([2], seed=5), pipe([0, 1, 2], seed=3)[2:])


def test_images_depend_on_seed_and_class(pipe: Pipeline) -> None:
    images = torch.cat([pipe([0], seed=0), pipe([0], seed=1), pipe([1], seed=0), pipe(seed=0)])
    assert len(images.flatten(1).unique(dim=0)) == 4


def test_all_caches_give_the_same_images(pipe: Pipeline) -> None:
    close(pipe([0, 1], cache="static"), pipe([0, 1], cache="dense"))
    close(pipe([0, 1], cache="static"), pipe([0, 1], cache=Dense))
    with pytest.raises(UserError, match="unknown cache 'quick': there are dense, scale, static"):
        pipe([0], cache="quick")


def test_a_decoding_can_be_given_and_used_again(pipe: Pipeline) -> None:
    decoding = Sequential(pipe.model)
    for _ in range(2):
        close(pipe([0, 1], number=2, decoding=decoding, batch_size=3), pipe([0, 1], number=2))


def test_settings_not_given_are_those_of_the_run(pipe: Pipeline) -> None:
    same = pipe([0, 1], guidance=1.5, top_p=None, steps=None)
    close(pipe([0, 1]), same)
    assert not torch.equal(pipe([0, 1], guidance=5.0), same)
    sampling = replace(pipe.run.recipe.sampling, temperature=0.5)
    assert pipe.settings(temperature=0.5) == sampling
    with pytest.raises(ValueError, match="temperature"):
        pipe([0], temperature=-1.0)


def test_settings_that_mean_nothing_to_the_head_are_refused(pipe: Pipeline) -> None:
    values = {field.name: getattr(pipe.settings(), field.name) for field in fields(Sampling)}
    odd = values.keys() - pipe.model.head.heeds
    assert ("top_k" in odd) != ("steps" in odd)
    for name in odd:
        with pytest.raises(UserError, match=f"^{name} would change nothing: .* heeds guidance"):
            pipe([0], **{name: values[name]})
    heeded: Any = {name: values[name] for name in values if name not in odd}
    assert pipe.settings(**heeded) == pipe.settings()


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (["CAT", "dog", 2, "t-shirt/TOP"], [0, 1, 2, 2]),
        ([None, -1], [-1, -1]),
        ("dog", [1]),
        (1, [1]),
        (None, [-1]),
        (torch.tensor([2, 0]), [2, 0]),
    ],
)
def test_labels_are_ids_or_names(pipe: Pipeline, labels: Any, ids: list[int]) -> None:
    assert pipe.ids(labels) == ids


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("dgo", "unknown class 'dgo': did you mean 'Dog'?"),
        ("zebra", "unknown class 'zebra': the classes are cat, Dog, T-shirt/top"),
        (3, "unknown class 3: ids are 0..2, or -1 for none"),
        (-2, "unknown class -2"),
    ],
)
def test_unknown_labels_are_named(pipe: Pipeline, label: int | str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        pipe([label])


def test_numbers_out_of_range_are_named(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="batch_size must be 1 or more, got 0"):
        pipe([0], batch_size=0)
    with pytest.raises(UserError, match="seeds must be 0 or more, got -1"):
        pipe([0], seed=-1)
    with pytest.raises(UserError, match="nothing to draw"):
        pipe([0], number=0)


def test_steps_lead_from_coarse_to_the_finished_image(pipe: Pipeline) -> None:
    canvases = list(pipe.steps([0, 1], seed=3, guidance=2.0))
    assert [canvas.done for canvas in canvases] == [*range(1, len(pipe.schedule) + 1)]
    close(pipe.decode(canvases[-1]), pipe([0, 1], seed=3, guidance=2.0))
    assert pipe.decode(canvases[0]).shape == (2, 3, 8, 8)


def test_batches_can_show_every_step(pipe: Pipeline) -> None:
    sampling = pipe.settings()
    (images,) = pipe.batches([0, 1], [3, 4], sampling=sampling, steps=True)
    assert images.shape == (2, len(pipe.schedule), 3, 8, 8)
    close(images[:, -1], pipe([0, 1], seed=3))
    assert [len(b) for b in pipe.batches([0] * 5, range(5), sampling=sampling, batch_size=2)] == [
        2,
        2,
        1,
    ]


class Cramped(Sequential):
    """Runs out of memory in the second turn of batches that are too large."""

    def __init__(self, pipe: Pipeline, room: int, error: RuntimeError) -> None:
        super().__init__(pipe.model)
        self.room, self.error = room, error

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        if len(canvas.latent) > self.room and canvas.done:
            raise self.error
        return super().propose(canvas, rng)


GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.")


@pytest.mark.parametrize("error", [GPU, CPU])
def test_batches_are_halved_until_they_fit(
    pipe: Pipeline, error: RuntimeError, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger=drawing.__name__):
        images = pipe([0, 1], number=5, decoding=Cramped(pipe, 2, error), progress=True)
    close(images, pipe([0, 1], number=5))
    assert [record.args for record in caplog.records] == [(10, 5), (5, 2)]


def test_no_memory_for_one_image_is_told(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="out of memory for a single image: try"):
        pipe([0, 1], decoding=Cramped(pipe, 0, GPU))


def test_other_failures_pass_through(pipe: Pipeline) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        pipe([0, 1], decoding=Cramped(pipe, 0, RuntimeError("shapes do not match")))


def test_a_saved_pipeline_makes_the_same_images(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save(tmp_path / "run")
    again = var.load(tmp_path / "run")
    close(again([0, 1, 2]), pipe([0, 1, 2]))  # products may take another route
    assert again.classes == ("cat", "Dog", "T-shirt/top")
    assert again.to("cpu") is again


def test_half_precision_makes_images_too(run_folder: Path) -> None:
    images = var.load(run_folder, dtype=torch.bfloat16)([0, 1])
    assert images.dtype == torch.float32 and images.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_makes_the_same_image_alone_and_among_others(
    run_folder: Path, dtype: torch.dtype
) -> None:
    pipe = var.load(run_folder, device="cuda", dtype=dtype)
    images = pipe([0, 1, 2], seed=3)
    assert images.device.type == "cuda" and images.dtype == torch.float32
    torch.testing.assert_close(pipe([2], seed=5), images[2:], rtol=0, atol=1e-3)


def test_a_tokenizer_alone_makes_no_images(tiny_run: Run) -> None:
    pipe = Pipeline(Run(replace(tiny_run.recipe, backbone=None), tiny_run.tokenizer))
    tokens = pipe.tokenizer.encode(torch.rand(2, 3, 8, 8), pipe.schedule)
    assert tuple(group.shape[1] for group in tokens) == pipe.schedule.sizes
    with pytest.raises(UserError, match="tokenizer without a generator"):
        pipe([0])


def test_shipped_models_are_found_by_name(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder.rename(tmp_path / "toy-var")
    monkeypatch.setattr(hub, "_ZOO", tmp_path)
    assert hub.shipped() == ["toy-var"]
    assert var.load("toy-var").class_count == 3
    with pytest.raises(UserError, match=r"no model named toy-vra \(did you mean toy-var\?\)"):
        var.load("toy-vra")
    with pytest.raises(UserError, match=r"known names are toy-var, .*var-d16"):
        var.load("x")


def test_a_folder_on_disk_comes_first(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder.rename("var-d16")
    assert var.load("var-d16").class_count == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is not a run folder: it holds no config\.yaml"):
        var.load("empty")


def test_published_names_become_runs(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_run.recipe
    parts = Parts(
        model=deepcopy(tiny_run.model),
        tokenizer=tiny_run.tokenizer,
        schedule=recipe.schedule,
        model_spec=dict(recipe.backbone or {}),
        tokenizer_spec=dict(recipe.tokenizer),
    )
    sampling = replace(recipe.sampling, guidance=4.0)
    entry = Checkpoint("var", "a/b", {}, {}, parameters=1, size=8, sampling=vars(sampling))
    monkeypatch.setitem(hub.CHECKPOINTS, "var-tiny", entry)
    asked: list[Any] = []
    monkeypatch.setattr(hub, "load_published", lambda *args: asked.append(args) or parts)
    pipe = var.load("var-tiny", files=tmp_path)
    assert asked == [("var-tiny", tmp_path)]
    assert pipe.settings() == sampling and pipe.ids(["golden retriever"] * 0) == []
    assert len(pipe.classes) == 1000 and pipe.classes[207] == "golden retriever"
    pipe.save(tmp_path / "own")
    assert torch.equal(var.load(tmp_path / "own")([0]), pipe([0]))


def test_a_pipeline_leaves_the_model_that_it_is_given_as_it_is(tiny_run: Run) -> None:
    run = deepcopy(tiny_run)
    Pipeline(run)([0])
    assert run.model is not None
    assert not any(getattr(part, "pack", None) for part in run.model.modules())


def test_a_loaded_model_takes_the_routes_of_the_machine(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for faster in (True, False):
        monkeypatch.setattr(linear, "packed_is_faster", lambda dtype, faster=faster: faster)
        model = var.load(run_folder).run.model
        assert model is not None
        packs = [part.pack for part in model.modules() if isinstance(part, Linear)]
        assert packs and all((pack is not None) == faster for pack in packs)


def test_settings_for_another_number_of_groups_are_refused(pipe: Pipeline) -> None:
    message = f"temperature is given for 2 groups, the schedule has {len(pipe.schedule)}"
    with pytest.raises(UserError, match=message):
        pipe([0], temperature=[1.0, 0.5])


def test_a_pipeline_that_moves_decodes_with_what_moved(tiny_run: Run) -> None:
    pipe = Pipeline(deepcopy(tiny_run))
    before = pipe.tokenizer
    assert pipe.to("cpu").tokenizer is not before
    close(pipe([0]), Pipeline(pipe.run)([0]))
