"""Autoencoders that diffusers saved: found, read strictly, and the same numbers as theirs."""

import json
import logging
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import var
from tests import tiny
from var import hub
from var.diffusers_vae import octaves
from var.errors import UserError
from var.schedule import Schedule
from var.tokenizers.continuous import KL

WEIGHTS = "diffusion_pytorch_model.safetensors"


def saved(folder: Path, **changes: Any) -> AutoencoderKL:
    """Let diffusers save an autoencoder; return it."""
    vae = AutoencoderKL(
        **{
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
            "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 12,
            "scaling_factor": 0.5,
            "shift_factor": 0.2,
            **changes,
        }
    )
    tiny.shaken(vae, scale=0.2)
    vae.eval().save_pretrained(folder)
    return vae


def amend(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shift_factor": None, "latents_mean": [0.1, -0.2, 0.3, 0], "latents_std": [1, 2, 3, 4]},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False, "layers_per_block": 2},
    ],
)
def test_latents_and_images_are_those_of_diffusers(tmp_path: Path, changes: dict) -> None:
    vae = saved(tmp_path, **changes)
    pipe = var.load(tmp_path)
    tokenizer = pipe.run.tokenizer
    assert isinstance(tokenizer, KL) and not tokenizer.training and pipe.run.model is None
    assert pipe.schedule == Schedule.scales([1, 2, 4, 6])
    image = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    z = vae.encode(image * 2 - 1).latent_dist.mode()
    mean = torch.tensor(vae.config["latents_mean"] or [vae.config["shift_factor"]])
    deviation = torch.tensor(vae.config["latents_std"] or [1.0])
    latent = (z - mean.view(-1, 1, 1)) * 0.5 / deviation.view(-1, 1, 1)
    *_, last = tokens = tokenizer.encode(image, pipe.schedule)
    torch.testing.assert_close(last.mT.view_as(z), latent, rtol=0, atol=1e-5)
    canvas = tokenizer.blank(3, pipe.schedule).write(*tokens)
    theirs = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(canvas), theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 0.03


def test_the_autoencoder_of_a_pipeline_is_found(tmp_path: Path) -> None:
    vae = saved(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "config.json").write_text('{"_class_name": "SomethingElse"}')
    weight = var.load(tmp_path).run.tokenizer.vae.decoder.conv_in.weight
    assert torch.equal(weight, vae.decoder.conv_in.weight)


def test_it_can_be_saved_as_a_run(tmp_path: Path) -> None:
    saved(tmp_path / "theirs")
    pipe = var.load(tmp_path / "theirs")
    pipe.save(tmp_path / "ours")
    image, again = torch.rand(2, 3, 12, 12), var.load(tmp_path / "ours")
    assert again.schedule == pipe.schedule
    for ours, theirs in zip(
        again.tokenizer.encode(image, again.schedule),
        pipe.tokenizer.encode(image, pipe.schedule),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_old_names_and_half_precision_are_read(tmp_path: Path) -> None:
    vae = saved(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, tensor in load_file(tmp_path / WEIGHTS).items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        state[key] = tensor.half()
    assert sum(".query." in key for key in state) == 4
    save_file(state, tmp_path / WEIGHTS)
    ours = var.load(tmp_path).run.tokenizer.vae.state_dict()
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    for key, tensor in vae.state_dict().items():
        assert torch.equal(ours[key], tensor.half().float())


def test_keywords_of_other_versions_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path)
    amend(tmp_path, colour="red", _name_or_path="somewhere")
    with caplog.at_level(logging.WARNING):
        recipe = var.load(tmp_path).run.recipe
    assert "without meaning to this AutoencoderKL: colour" in caplog.text
    assert not {"colour", "_name_or_path", "_class_name"} & recipe.tokenizer["vae"].keys()


@pytest.mark.parametrize(
    ("size", "levels", "grids"),
    [
        (512, 4, [1, 2, 4, 8, 16, 32, 64]),
        (48, 2, [1, 2, 4, 8, 16, 24]),
        (8, 4, [1]),
        (4, 4, [1]),
        ([16, 64], 3, [1, 2, (4, 4), (4, 8), (4, 16)]),
    ],
)
def test_sides_double_and_end_on_the_latent_grid(
    size: int | list[int], levels: int, grids: list
) -> None:
    vae = {"sample_size": size, "block_out_channels": [64] * levels}
    assert octaves(vae) == Schedule.scales(grids)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    vae = saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"has no {WEIGHTS}, but no weights at all"):
        var.load(tmp_path)
    vae.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UserError, match=r"but diffusion_pytorch_model.bin: load it with diffusers"):
        var.load(tmp_path)


def test_weights_in_several_files_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "whole").save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    with pytest.raises(UserError, match=r"but diffusion_pytorch_model-00001-of-\d+.safetensors, "):
        var.load(tmp_path / "parts")


def test_damage_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=f"cannot read .*{WEIGHTS}: damaged, truncated"):
        var.load(tmp_path)
    path.write_bytes(whole)
    state = load_file(path)
    del state["decoder.conv_in.bias"]
    save_file(state | {"more": torch.ones(1)}, path)
    with pytest.raises(
        UserError, match=f"{WEIGHTS} does not fit .*1 missing: decoder.conv_in.bias; 1 unexpected"
    ):
        var.load(tmp_path)
    amend(tmp_path, act_fn=None, layers_per_block="two")
    with pytest.raises(UserError, match="config.json: KL cannot be built of these"):
        var.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read .*config.json"):
        var.load(tmp_path)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    amend(tmp_path, _class_name="AutoencoderTiny")
    with pytest.raises(UserError, match="holds no config.yaml, and no AutoencoderKL either"):
        var.load(tmp_path)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is on the hub as me/it; what is fetched of it comes to another one."""
    source, cache = tmp_path / "repository", tmp_path / "cache"
    source.mkdir()

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("me/it", None)
        names = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
        for each in filter_repo_objects(names, allow_patterns=allow_patterns):
            (cache / each).parent.mkdir(parents=True, exist_ok=True)
            copy(source / each, cache / each)
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    return source


def cached(repository: Path) -> list[str]:
    cache = repository.parent / "cache"
    return sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file())


@pytest.mark.parametrize("home", [".", "vae"])
def test_no_more_than_the_autoencoder_is_fetched(repository: Path, home: str) -> None:
    vae = saved(repository / home)
    for name in ("unet/diffusion_pytorch_model.safetensors", "all.safetensors", "pickled.bin"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).touch()
    weight = var.load("me/it").run.tokenizer.vae.decoder.conv_in.weight
    assert torch.equal(weight, vae.decoder.conv_in.weight)
    assert cached(repository) == [
        (Path(home) / name).as_posix() for name in ("config.json", WEIGHTS)
    ]


def test_repositories_without_an_autoencoder_are_refused(repository: Path) -> None:
    (repository / "config.json").write_text('{"model_type": "bert"}')
    (repository / "model.safetensors").touch()
    with pytest.raises(
        UserError, match="me/it on the Hugging Face hub is no run: it holds no conf"
    ):
        var.load("me/it")
    assert cached(repository) == ["config.json"]


def test_pickled_weights_are_not_even_fetched(repository: Path) -> None:
    saved(repository / "vae").save_pretrained(repository / "vae", safe_serialization=False)
    (repository / "vae" / WEIGHTS).unlink(missing_ok=True)
    with pytest.raises(UserError, match=f"vae has no {WEIGHTS}"):
        var.load("me/it")
    assert cached(repository) == ["vae/config.json"]
