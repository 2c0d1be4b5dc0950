"""Our models in diffusers' layout and by diffusers' pipeline: the same images, bit for bit."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils

import var
from tests.conftest import RUNS, make_run
from var import diffusers_layout, diffusers_pipeline, store
from var.bars import progress_bar
from var.cache.scale_budget import Budget
from var.diffusers_parts import VARTokenizer, VARTransformer
from var.diffusers_pipeline import VARPipeline
from var.errors import UserError
from var.pipeline import Pipeline
from var.store import Run


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tiny_run: Run) -> VARPipeline:
    return quiet(VARPipeline.of(deepcopy(tiny_run)))


@pytest.fixture
def folder(tiny_run: Run, tmp_path: Path) -> Path:
    """A run in diffusers' layout."""
    Pipeline(tiny_run).save(tmp_path / "it", layout="diffusers")
    return tmp_path / "it"


@RUNS
def test_the_layout_holds_all_that_a_run_folder_does(tiny_run: Run, folder: Path) -> None:
    again = diffusers_layout.load(folder)
    assert again.recipe == tiny_run.recipe
    assert torch.equal(var.load(folder)([0, 2], seed=3), Pipeline(tiny_run)([0, 2], seed=3))
    assert store.CONFIG not in [path.name for path in folder.rglob("*")]


@pytest.mark.parametrize("name", ["fashion-var", "fashion-flowar", "fashion-raster"])
def test_a_shipped_model_makes_the_same_image_from_every_layout(name: str, tmp_path: Path) -> None:
    pipe = var.load(name)
    how: Any = {"steps": 1} if name == "fashion-flowar" else {}  # by default they are many
    image = pipe(["bag"], seed=5, **how)
    pipe.save(tmp_path / "run")
    var.load(tmp_path / "run").save(tmp_path / "diffusers", layout="diffusers")
    assert torch.equal(var.load(tmp_path / "run")(["bag"], seed=5, **how), image)
    found = quiet(VARPipeline.from_pretrained(tmp_path / "diffusers"))
    assert torch.equal(found(["bag"], generator=5, output_type="pt", **how).images, image)


def test_diffusers_finds_the_pipeline_in_the_folder(
    tiny_run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder))
    for custom in (str(folder), "pipeline", str(folder / "pipeline.py")):
        pipe = quiet(
            DiffusionPipeline.from_pretrained(
                folder, custom_pipeline=custom, trust_remote_code=True
            )
        )
        assert isinstance(pipe, VARPipeline)
    assert set(pipe.components) == {"tokenizer", "transformer", "scheduler"}
    image = Pipeline(tiny_run)([2], seed=7)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(pipe([2], generator=generator, output_type="pt").images, image)
    alone = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=custom, trust_remote_code=True, transformer=None
    )
    assert alone.transformer is None, "what is given takes the place of what is there"
    pipe.save_pretrained(tmp_path / "again")
    assert torch.equal(var.load(tmp_path / "again")([2], seed=7), image)


def test_a_generator_counts_by_its_seed(pipe: VARPipeline) -> None:
    def images(generator: Any, **how: Any) -> torch.Tensor:
        return pipe([0, 1], generator=generator, output_type="pt", **how).images

    seeded = torch.Generator().manual_seed(3)
    expected = images(3)
    for same in (seeded, seeded, [3, 4], [3, torch.Generator().manual_seed(4)]):
        assert torch.equal(images(same), expected)
    swapped, alone = images([4, 3])[:1], pipe([0], generator=4, output_type="pt").images
    torch.testing.assert_close(swapped, alone, rtol=0, atol=1e-5)  # batches of other sizes
    torch.manual_seed(0)
    first, second = images(None), images(None)
    torch.manual_seed(0)
    assert torch.equal(images(None), first) and not torch.equal(first, second)
    with pytest.raises(UserError, match="1 generators for 2 images: give one, or one for each"):
        images([3])
    with pytest.raises(UserError, match="seeds must be 0 or more, got -1"):
        images(-1)
    with pytest.raises(UserError, match="generator must be a number .*, got '0'"):
        images("0")
    assert torch.equal(images(np.int64(3)), expected)
    with pytest.raises(UserError, match="there is nothing to draw"):
        pipe([])
    with pytest.raises(UserError, match="there is nothing to draw"):
        pipe([0], num_images_per_prompt=-1)
    with pytest.raises(UserError, match="batch_size must be 1 or more, got 0"):
        pipe([0], batch_size=0)


def test_images_come_as_they_are_asked_for(pipe: VARPipeline) -> None:
    how: dict[str, Any] = {"num_images_per_prompt": 2, "generator": 0}
    tensor = pipe(["dog", None], output_type="pt", **how).images
    assert torch.equal(tensor, pipe.native(["dog", None], number=2))
    pictures = pipe(["dog", None], **how).images
    assert [picture.size for picture in pictures] == [(8, 8)] * 4
    array = pipe(["dog", None], output_type="np", return_dict=False, **how)[0]
    assert array.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(np.rint(array[1] * 255), np.asarray(pictures[1]))
    assert pipe([0], output_type="latent", **how).images.shape == (2, 4, 4, 4)
    with pytest.raises(UserError, match="output_type='jpg': there are pil, np, pt, latent"):
        pipe([0], output_type="jpg")


def test_settings_are_those_of_the_model_unless_they_are_given(pipe: VARPipeline) -> None:
    def image(**how: Any) -> torch.Tensor:
        return pipe([1], generator=0, output_type="pt", **how).images

    native = pipe.native
    assert torch.equal(image(guidance_scale=3.0), native([1], guidance=(3.0, 3.0)))
    assert torch.equal(image(guidance_scale=np.float32(3)), image(guidance_scale=3))
    with pytest.raises(UserError, match="guidance_scale must be a number, .*, got '3'"):
        image(guidance_scale="3")
    assert torch.equal(image(guidance_scale=(1, 2), top_k=3), native([1], guidance=1, top_k=3))
    assert torch.equal(image(cache="dense", decoding="sequential"), image())
    assert not torch.equal(image(guidance_scale=3.0), image())
    with pytest.raises(UserError, match="guidance_scale and guidance are two ways"):
        image(guidance_scale=3.0, guidance=1.0)


def test_someone_may_look_on_and_interrupt(pipe: VARPipeline) -> None:
    seen: list[Any] = []

    def look(it: VARPipeline, step: int, count: int, shown: dict[str, Any]) -> None:
        seen.append((step, count, shown["latents"].shape[0], sorted(shown)))
        it.interrupt = len(seen) == 5

    how: dict[str, Any] = {"callback_on_step_end": look, "output_type": "pt", "generator": 1}
    whole = pipe(
        [0, 1, 2], batch_size=2, callback_on_step_end_tensor_inputs=["canvas", "latents"], **how
    )
    every = ["canvas", "latents"]
    assert seen == [*((k, 3, 2, every) for k in range(3)), (0, 3, 1, every), (1, 3, 1, every)]
    finished = pipe([0, 1, 2], batch_size=2, output_type="pt", generator=1)
    assert torch.equal(whole.images[:2], finished.images[:2])
    assert not torch.equal(whole.images[2], finished.images[2]), "one group is missing"
    with pytest.raises(UserError, match="callback_on_step_end_tensor_inputs='x'"):
        pipe([0], callback_on_step_end_tensor_inputs=["x"])


def test_the_tokenizer_stays_in_float32(pipe: VARPipeline, folder: Path) -> None:
    for half in (VARPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16), pipe):
        moved = quiet(half.to("cpu", torch.bfloat16))
        assert (moved.dtype, moved.tokenizer.dtype) == (torch.bfloat16, torch.float32)
        assert moved.native.dtype == torch.bfloat16
        assert moved([0], generator=0, output_type="pt").images.isfinite().all()


def test_a_tokenizer_alone_and_a_budget_are_kept(tiny_run: Run, tmp_path: Path) -> None:
    VARPipeline.from_pretrained("digits-vq").save_pretrained(tmp_path / "vq")
    found = VARPipeline.from_pretrained(tmp_path / "vq")
    assert found.run.model is None and found.run.recipe == var.load("digits-vq").run.recipe
    with pytest.raises(UserError, match="tokenizer without a generator"):
        found([0])
    budget = Budget.shared(tiny_run.recipe.schedule, 2, 0.5)
    run = Run(tiny_run.recipe, tiny_run.tokenizer, tiny_run.model, budget)
    VARPipeline.of(run).save_pretrained(tmp_path / "it")
    assert var.load(tmp_path / "it").run.budget == budget


def test_options_of_diffusers_ask_for_what_is_so_or_are_refused(folder: Path) -> None:
    vain: dict[str, Any] = {"use_safetensors": True, "variant": None, "trust_remote_code": True}
    pipe = VARPipeline.from_pretrained(folder, revision="main", custom_pipeline="pipeline", **vain)
    pipe.save_pretrained(folder, safe_serialization=True)
    for odd, message in (
        ({"variant": "fp16", "token": "x"}, r"from_pretrained does not know variant, token: leave"),
        ({"device_map": "balanced"}, "device_map='balanced': a model of var is on one device"),
        ({"device_map": "gpu"}, "unknown device 'gpu'"),
        ({"torch_dtype": "bf16"}, "unknown number type 'bf16': say torch.bfloat16"),
    ):
        with pytest.raises(UserError, match=message):
            VARPipeline.from_pretrained(folder, **odd)
    other = VARPipeline.of(make_run(1)).transformer
    mixed = quiet(VARPipeline.from_pretrained(folder, transformer=other))
    assert mixed.native.model is other.module
    with pytest.raises(UserError, match="does not know safe_serialization: leave it out"):
        pipe.save_pretrained(folder, safe_serialization=False)


def test_a_component_is_loaded_by_itself(folder: Path) -> None:
    for how in ({"dtype": torch.bfloat16}, {"torch_dtype": torch.bfloat16}):
        part = VARTransformer.from_pretrained(folder, subfolder="transformer", **how)
        assert part.dtype == torch.bfloat16
    assert VARTokenizer.from_pretrained(folder / "tokenizer", **how).dtype == torch.float32


def test_bars_stay_out_of_log_files(
    tiny_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = VARPipeline.of(deepcopy(tiny_run))
    made: list[Any] = []
    monkeypatch.setattr(
        diffusers_pipeline, "progress_bar", lambda **how: made.append(how) or progress_bar(**how)
    )
    pipe([0, 1, 2], batch_size=2)
    quiet(pipe)([0])
    assert [(how["shown"], how["total"]) for how in made] == [(True, 6), (False, 3)]
    assert capsys.readouterr().err == ""


def test_the_index_says_whether_there_is_a_generator(folder: Path, tmp_path: Path) -> None:
    var.load("digits-vq").save(folder, layout="diffusers")
    assert (folder / "transformer").is_dir(), "it is the old one's"
    assert var.load(folder).run.model is None


def test_a_save_cut_short_leaves_no_mixture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, write = make_run(1), store.write

    def cut(path: Path, module: Any, like: Path) -> None:
        write(path, module, like=like)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        Pipeline(other).save(folder, layout="diffusers")
    with pytest.raises(UserError, match="is not a run folder"):
        var.load(folder)
    monkeypatch.undo()
    Pipeline(other).save(folder, layout="diffusers")
    assert var.load(folder).run.recipe == other.recipe


def amend(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_does_not_fit_is_named(folder: Path) -> None:
    config, weights = folder / "transformer" / "config.json", "diffusion_pytorch_model.safetensors"
    (folder / "tokenizer" / weights).rename(folder / "hidden")
    with pytest.raises(UserError, match=rf"tokenizer/{weights} is missing"):
        var.load(folder)
    (folder / "hidden").rename(folder / "tokenizer" / weights)
    amend(folder / "scheduler" / "scheduler_config.json", budget=5)
    with pytest.raises(UserError, match="scheduler: budget.* must be mapped to values"):
        var.load(folder)
    amend(folder / "scheduler" / "scheduler_config.json", budget=None)
    amend(config, spec={**json.loads(config.read_text())["spec"], "depth": 3})
    with pytest.raises(UserError, match=r"does not fit its configuration: missing: blocks\.2"):
        var.load(folder)
    amend(config, spec={"_target_": "os.system"})
    with pytest.raises(UserError, match="_target_ must be in var"):
        var.load(folder)
    amend(config, _class_name="UNet2DModel")
    with pytest.raises(UserError, match="is for a UNet2DModel, not for a VARTransformer"):
        var.load(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*model_index\.json"):
        var.load(folder)
