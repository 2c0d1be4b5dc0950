from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import var
from tests import tiny, tiny_flowar
from var import hub, published
from var.errors import UserError
from var.published import CHECKPOINTS, build, load_published
from var.recipe import Recipe
from var.sampling import Sampling
from var.systems import var_keys
from var.systems.files import locate, read_state
from var.tokenizers.multiscale import MultiScaleVQ

VAE = {
    "cls": "VQVAE",
    "vocab_size": tiny.VOCABULARY,
    "z_channels": tiny.CHANNELS,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 0,
    "quant_resi": 0.5,
    "share_quant_resi": 4,
    "v_patch_nums": tiny.LADDER,
}
VAR = {
    "cls": "VAR",
    "num_classes": tiny.CLASSES,
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "attn_l2_norm": True,
    "patch_nums": tiny.LADDER,
}
ALONE = {"vocab_size": tiny.VOCABULARY, "Cvae": tiny.CHANNELS}


def vae() -> MultiScaleVQ:
    return MultiScaleVQ(
        vocabulary=tiny.VOCABULARY,
        channels=tiny.CHANNELS,
        width=32,
        multipliers=(1, 1),
        blocks=0,
        scales=len(tiny.LADDER),
    )


def vae_state() -> dict[str, Tensor]:
    state = var_keys.tokenizer(4).publish(vae().state_dict())
    return {**state, "quantize.ema_vocab_hit_SV": torch.zeros(10, tiny.VOCABULARY)}


def both() -> dict[str, Tensor]:
    states = {"var": var_keys.publish(tiny.model()), "vae": vae_state()}
    return {f"{p}/{key}": tensor for p, state in states.items() for key, tensor in state.items()}


def test_both_parts_are_built_from_one_state() -> None:
    parts = build("var", {"vae": VAE, "var": VAR}, both())
    assert parts.schedule == tiny.SCHEDULE
    assert torch.equal(parts.model.stem.positions, tiny.model().stem.positions)
    assert hasattr(parts.tokenizer, "encoder") and hasattr(parts.tokenizer, "decoder")


def test_a_state_without_prefixes_is_the_model() -> None:
    parts = build("var", {"vae": VAE, "var": VAR}, var_keys.publish(tiny.model()))
    assert parts.model is not None and parts.tokenizer is None


def test_the_tokenizer_has_the_halves_that_the_state_has() -> None:
    state = {k: v for k, v in vae_state().items() if not k.startswith(("encoder", "quant_conv"))}
    tokenizer = build("var", VAE, state).tokenizer
    assert hasattr(tokenizer, "decoder") and not hasattr(tokenizer, "encoder")


def test_the_quantizer_can_come_alone() -> None:
    state = {
        key.removeprefix("quantize."): tensor
        for key, tensor in vae_state().items()
        if key.startswith("quantize.")
    }
    settings = {**ALONE, "quant_resi": 0.5, "share_quant_resi": 4, "v_patch_nums": tiny.LADDER}
    parts = build("var", {"cls": "VectorQuantizer2", **settings}, state)
    assert parts.tokenizer.channels == tiny.CHANNELS


@pytest.mark.parametrize("sharing", [0, 1, 2, 4])
def test_all_ways_to_share_phi_are_understood(sharing: int) -> None:
    quantizer = tiny.tokenizer()
    while len(quantizer.phi) > (sharing or len(tiny.LADDER)):
        del quantizer.phi[-1]
    state = var_keys.quantizer(sharing).publish(quantizer.state_dict())
    settings = {**ALONE, "quant_resi": -0.5, "share_quant_resi": sharing}
    config = {"cls": "VectorQuantizer2", "v_patch_nums": tiny.LADDER, **settings}
    tokenizer = build("var", config, state).tokenizer
    assert len(tokenizer.phi) == (sharing or len(tiny.LADDER))
    assert torch.equal(tokenizer.phi[-1].weight, quantizer.phi[-1].weight)


def test_the_specs_rebuild_the_parts() -> None:
    from var import recipe

    parts = build("var", {"vae": VAE, "var": VAR}, both())
    for spec, part in [
        (parts.model_spec, parts.model),
        (parts.tokenizer_spec, parts.tokenizer),
    ]:
        shapes = {k: t.shape for k, t in recipe.build(spec, "it").state_dict().items()}
        assert shapes == {k: t.shape for k, t in part.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**VAR, **ALONE, "colour": 1}, "unknown keys in the configuration of VAR: colour"),
        ({"cls": "VAR", "depth": 2}, "missing keys in the configuration of VAR: Cvae, embed_dim"),
        ({"cls": "GPT"}, "unknown cls GPT; there are: VAR, VQVAE, VectorQuantizer2"),
        ({"var": VAR}, "expected keys `vae` and `var`"),
        ({**VAR, **ALONE, "num_heads": 5}, "5 heads do not divide the width 32"),
    ],
)
def test_a_wrong_configuration_is_refused(config: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("var", config, var_keys.publish(tiny.model()))


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(UserError, match="unknown system nosuch; there are: .*var"):
        build("nosuch", {}, {})


def test_a_key_without_prefix_among_prefixed_ones_is_refused() -> None:
    with pytest.raises(UserError, match="lvl_1L begins with none of: var/, vae/"):
        build("var", {"vae": VAE, "var": VAR}, {**both(), "lvl_1L": torch.zeros(1)})


@pytest.mark.parametrize("name", [n for n, c in CHECKPOINTS.items() if c.system == "var"])
def test_the_table_of_checkpoints_tells_the_true_sizes(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    config = checkpoint.config
    if "var" in checkpoint.files:
        from var.models.var import VAR as Model
        from var.systems.var import _MODEL_DEFAULTS, _MODEL_NAMES

        values = {**_MODEL_DEFAULTS, "vocab_size": 4096, "Cvae": 32, **config["var"]}
        values["attn_l2_norm"] = True
        with torch.device("meta"):
            module = Model(**{ours: values[theirs] for theirs, ours in _MODEL_NAMES.items()})
    else:
        with torch.device("meta"):
            module = MultiScaleVQ(
                vocabulary=config["vocab_size"],
                channels=config["z_channels"],
                width=config["ch"],
                multipliers=(1, 1, 2, 2, 4),
                blocks=2,
                scales=len(config["v_patch_nums"]),
            )
    assert sum(p.numel() for p in module.parameters()) == checkpoint.parameters


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files of a tiny release, which the table lists as `toy`."""
    torch.save(var_keys.publish(tiny.model()), tmp_path / "model.pth")
    torch.save(vae_state(), tmp_path / "vae.pth")
    toy = replace(
        CHECKPOINTS["var-d16"],
        repository="nobody/nothing",
        files={"var": "model.pth", "vae": "vae.pth"},
        config={"vae": VAE, "var": VAR},
    )
    monkeypatch.setitem(published.CHECKPOINTS, "toy", toy)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_released_checkpoint_is_read_from_a_folder(released: Path) -> None:
    parts = load_published("toy", released)
    assert torch.equal(parts.model.head.linear.weight, tiny.model().head.linear.weight)
    assert parts.tokenizer is not None and parts.schedule == tiny.SCHEDULE


def test_old_copies_without_normalised_attention_are_recognised(released: Path) -> None:
    torch.save(var_keys.publish(tiny.model(l2_norm=False)), released / "model.pth")
    config = {"vae": VAE, "var": {k: v for k, v in VAR.items() if k != "attn_l2_norm"}}
    published.CHECKPOINTS["toy"] = replace(published.CHECKPOINTS["toy"], config=config)
    spec = load_published("toy", released).model_spec
    assert spec is not None and spec["l2_norm"] is False


def test_a_file_that_cannot_be_fetched_is_named(released: Path) -> None:
    (released / "vae.pth").unlink()
    with pytest.raises(UserError, match="cannot fetch vae.pth from huggingface.co/nobody/nothing"):
        load_published("toy", released)


def test_the_files_of_another_release_are_refused(released: Path) -> None:
    torch.save(var_keys.publish(tiny.model(depth=1, channels=7)), released / "model.pth")
    with pytest.raises(UserError, match=r"model.pth and .* are not toy: .*\(32, 7\) instead of"):
        load_published("toy", released)


# Parameters as counted in the published files; guidance, its last time, and steps of the README.
FLOWAR = {
    "flowar-s": (171_718_072, (1.0, 4.3), 0.9, 25),
    "flowar-l": (586_862_912, (1.0, 2.4), 0.9, 25),
    "flowar-h": (1_913_316_880, (1.0, 2.4), 0.7, 50),
}


@pytest.mark.parametrize("name", FLOWAR)
def test_flowar_is_as_large_as_its_files_and_drawn_as_its_readme_says(name: str) -> None:
    count, guidance, interval, steps = FLOWAR[name]
    run = hub.find(f"random/{name}", device="meta", dtype=torch.bfloat16)
    assert run.model is not None
    assert sum(p.numel() for p in run.model.parameters()) == count == CHECKPOINTS[name].parameters
    assert sum(p.numel() for p in run.tokenizer.parameters()) == 66_456_019
    parts = {*run.model.parameters(), *run.tokenizer.parameters()}
    assert all(weight.is_meta for weight in parts)
    recipe = run.recipe
    assert recipe.sampling == Sampling(
        guidance=guidance, interval=(0.0, interval), steps=steps, solver="published"
    )
    assert (recipe.data.size, len(recipe.data.classes)) == (256, 1000)
    assert recipe.schedule.grids == tuple((side, side) for side in (1, 2, 4, 8, 16))
    assert Recipe.parse(recipe.text(), "it").sampling == recipe.sampling


@pytest.fixture
def released_flowar(released: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files of a tiny FlowAR, which the table lists as `toy-flowar`."""
    tiny_flowar.release(released)
    toy = replace(
        CHECKPOINTS["flowar-s"],
        repository="nobody/nothing",
        files={"model": "FlowAR-T.pth", "vae": ("kl16.ckpt", "kl16.safetensors")},
        config={"model": tiny_flowar.MODEL, "vae": tiny_flowar.VAE},
        size=8,
    )
    monkeypatch.setitem(published.CHECKPOINTS, "toy-flowar", toy)
    return released


def test_a_released_flowar_draws_images(released_flowar: Path, tmp_path: Path) -> None:
    pipe = var.load("toy-flowar", files=released_flowar)
    images = pipe(labels=[3, "goldfish", -1], seed=1, steps=4)
    assert images.shape == (3, 3, 8, 8) and images.isfinite().all()
    again = pipe(labels=["goldfish"], seed=2, steps=4)
    torch.testing.assert_close(again, images[1:2], rtol=0, atol=1e-4)
    assert (images[0] - images[2]).abs().max() > 0.01
    plain = pipe(labels=[3], seed=1, steps=4, guidance=0)
    assert (plain - images[:1]).abs().max() > 1e-4
    pipe.save(tmp_path / "run")
    stored = var.load(tmp_path / "run")(labels=[3, 1, -1], seed=1, steps=4)
    assert torch.equal(stored, images)


def test_an_unknown_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match="unknown checkpoint var-d99; there are: var-d16"):
        load_published("var-d99")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    assert read_state(path)["a"].shape == (1000,)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(UserError, match=r"cannot read .*model.pth: damaged, truncated"):
        read_state(path)


def test_safetensors_are_read_and_their_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    assert read_state(path)["a"].tolist() == [1, 1, 1]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged, truncated"):
        read_state(path)


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.write_text, (Path("bomb"), "boom"))


def test_a_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Bomb()}, "model.pth")
    with pytest.raises(UserError, match="no checkpoint"):
        read_state(Path("model.pth"))
    assert not Path("bomb").exists()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "trainer": {}}, tmp_path / "ar-ckpt-last.pth")
    with pytest.raises(UserError, match="no flat state dict of tensors; it holds: epoch, trainer"):
        read_state(tmp_path / "ar-ckpt-last.pth")
    with pytest.raises(UserError, match="there is no file"):
        read_state(tmp_path / "nothing.pth")


def test_a_file_in_the_folder_is_not_looked_for_elsewhere(released: Path) -> None:
    assert locate("nobody/nothing", "vae.pth", released) == released / "vae.pth"
