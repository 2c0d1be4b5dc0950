"""The experiments: every one composes, fits together, and says what was published."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import nn

import var.configs
from var.errors import UserError
from var.heads.flow import Flow
from var.heads.flow_net import FlowNet
from var.metrics.features import SmallClassifier
from var.published import CHECKPOINTS, blueprint
from var.recipe import build, keywords, parse_sampling, parse_schedule
from var.sampling import Sampling
from var.schedule import Schedule
from var.scripts.command import check_complete, made
from var.scripts.parts import geometry, plain
from var.tokenizers.losses import Objective
from var.training.kl import KLTask
from var.training.optim import published_rate
from var.training.settings import Settings
from var.training.tokenizer import TokenizerTask

FOLDER = Path(var.configs.__file__ or "").parent / "experiment"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
IMAGENET = 1_281_167
# Side of the images, by data set.
SIZES = {"digits": 16, "fashion_mnist": 32, "cifar10": 32, "image_folder": 256}


@functools.cache
def composed(name: str, *overrides: str) -> DictConfig:
    """Return an experiment as it is run; where its data lie it leaves open."""
    with initialize_config_module("var.configs", version_base="1.3"):
        cfg = compose("train", [f"experiment={name}", *overrides])
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = "here"
    if cfg.features and OmegaConf.is_missing(cfg.features, "path"):
        cfg.features.path = "here"
    return cfg


def with_network(cfg: DictConfig, path: Path) -> DictConfig:
    """Return a config with a feature network of the shape that it names, in a file."""
    shape = {k: v for k, v in plain(cfg.features).items() if k not in ("_target_", "path")}
    network = SmallClassifier(**shape)
    save_file({k.removeprefix("layers."): v for k, v in network.state_dict().items()}, path)
    return OmegaConf.merge(cfg, {"features": {"path": str(path)}})  # type: ignore[return-value]


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Return the values of a config by their dotted names."""
    if not isinstance(node, dict):
        return {path: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{path}.{key}" if path else key)
    return found


def data_name(cfg: DictConfig) -> str:
    return str(cfg.data.train["_target_"]).rpartition(".")[2]


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def backbone(cfg: DictConfig, **terms: int) -> nn.Module:
    """Return the backbone of an experiment on the meta device."""
    place = geometry(plain(cfg.backbone), schedule(cfg))
    return build({**terms, **place, **plain(cfg.backbone)}, "backbone")


def schedule(cfg: DictConfig) -> Schedule:
    return parse_schedule(plain(cfg.schedule), "schedule")


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_complete_but_for_the_place_of_its_data(name: str) -> None:
    cfg = composed(name)
    assert f"experiment={name}" in (FOLDER / f"{name}.yaml").read_text(), "how to run it"
    check_complete(cfg)
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_settings_that_are_in_range(name: str) -> None:
    cfg = composed(name)
    assert isinstance(made(cfg.trainer), Settings)
    parse_sampling(plain(cfg.sampling), "sampling").check(len(schedule(cfg)))
    assert cfg.trainer.warmup_steps < cfg.trainer.steps


@pytest.mark.parametrize("name", NAMES)
def test_every_tokenizer_experiment_makes_a_tokenizer_for_its_images(
    name: str, tmp_path: Path
) -> None:
    cfg = composed(name)
    if "_target_" not in cfg.tokenizer:
        return
    if cfg.features:
        cfg = with_network(cfg, tmp_path / "net.safetensors")
    spec = plain(cfg.tokenizer)
    if "scales" in keywords(spec, "tokenizer"):
        spec["scales"] = len(schedule(cfg))
    tokenizer: Any = build(spec, "tokenizer")
    side = SIZES[data_name(cfg)] // tokenizer.factor
    assert schedule(cfg).grids[-1] == (side, side)
    task = made(cfg.task)(
        tokenizer=tokenizer,
        objective=Objective(made(cfg.objective)),
        schedule=schedule(cfg),
        sample=torch.zeros(1, 3, 8, 8),
    )
    assert type(task) is (KLTask if "vae" in spec else TokenizerTask)


def test_the_fashion_experiment_makes_a_small_flowar() -> None:
    tokenizer, cfg = composed("fashion-kl"), composed("fashion-flowar")
    assert cfg.tokenizer.run == tokenizer.name and cfg.schedule == tokenizer.schedule
    channels = tokenizer.tokenizer.vae.latent_channels
    model = backbone(cfg, channels=channels, classes=10)
    assert 1e6 < parameters(model) < 5e6
    assert parse_sampling(plain(cfg.sampling), "").scales == (1.0, 2.0)


FLOWAR = ["flowar-s", "flowar-l", "flowar-h"]


@pytest.mark.parametrize("name", FLOWAR)
def test_the_published_experiments_make_the_published_models(name: str) -> None:
    cfg, checkpoint = composed(name), CHECKPOINTS[name]
    model = backbone(cfg, channels=16, classes=1000)
    assert parameters(model) == checkpoint.parameters
    parts = blueprint(name)
    assert parts.schedule == schedule(cfg)
    assert parts.model_spec is not None
    ours = {"channels": 16, "classes": 1000, **plain(cfg.backbone)}
    theirs = {**parts.model_spec, "ladder": None, "decoder_heads": None, "mlp_ratio": None}
    assert ours == {key: value for key, value in theirs.items() if value is not None}


@pytest.mark.parametrize("name", FLOWAR)
def test_the_published_experiments_train_on_the_published_latents(name: str) -> None:
    cfg = composed(name)
    tokenizer = build(blueprint(cfg.tokenizer.run).tokenizer_spec or {}, "tokenizer")
    assert parameters(tokenizer) == CHECKPOINTS["kl16"].parameters
    assert SIZES[data_name(cfg)] == cfg.data.size == 16 * tokenizer.factor == 256  # type: ignore[operator]
    assert cfg.data.size * cfg.data.enlarge == 288 and cfg.data.flip


@pytest.mark.parametrize("name", FLOWAR)
def test_the_published_experiments_recommend_what_the_checkpoints_do(name: str) -> None:
    sampling = parse_sampling(plain(composed(name).sampling), "sampling")
    assert sampling == Sampling(**CHECKPOINTS[name].sampling)


@pytest.mark.parametrize("name", FLOWAR)
def test_the_published_experiments_train_by_the_published_recipe(name: str) -> None:
    cfg = composed(name)
    trainer: Settings = made(cfg.trainer)
    epoch = IMAGENET / trainer.batch_size
    assert trainer.steps == round(400 * epoch) and trainer.warmup_steps == round(100 * epoch)
    assert trainer.rate == pytest.approx(5e-5 * trainer.batch_size / 256)
    assert trainer.rate * trainer.final_rate == pytest.approx(1e-5)
    assert (trainer.rate_kind, trainer.warmup_start) == ("cos", 0)
    assert trainer.weight_decay == trainer.weight_decay_end == 0.02
    assert (tuple(trainer.betas), trainer.clip, trainer.ema) == ((0.9, 0.95), 3.0, 0.9999)
    assert (cfg.drop_label, cfg.backbone.drop, cfg.backbone.attention_drop) == (0.1, 0.1, 0.1)


@pytest.mark.parametrize("name", ["flowar-l", "flowar-h"])
def test_larger_ones_change_nothing_but_sizes_memory_and_guidance(name: str) -> None:
    small, large = (flat(plain(composed(each))) for each in ("flowar-s", name))
    assert small.keys() == large.keys()
    changed = {key for key, value in large.items() if small[key] != value}
    sizes = {"width", "heads", "encoder_depth", "decoder_depth", "head_depth", "head_width"}
    allowed = {f"backbone.{key}" for key in (*sizes, "cross")}
    allowed |= {f"sampling.{key}" for key in ("guidance", "interval", "steps")}
    allowed.add("trainer.accumulation")  # for less memory, of the same batch
    assert {"name", "backbone.width", "backbone.cross"} <= changed <= {"name", *allowed}
    assert composed(name, "trainer.batch_size=64").trainer.batch_size == 64
    on_cache = composed(name, "data=latents")
    assert data_name(on_cache) == "latents" and on_cache.name == name


LLAMAGEN = ["llamagen-b", "llamagen-l", "llamagen-xl", "llamagen-xxl", "llamagen-3b"]


@pytest.mark.parametrize("name", LLAMAGEN)
def test_the_published_rasters_are_made_trained_and_sampled_as_published(name: str) -> None:
    cfg, checkpoint, parts = composed(name), CHECKPOINTS[name], blueprint(name)
    assert parameters(backbone(cfg, vocabulary=16384, classes=1000)) == checkpoint.parameters
    assert parts.schedule == schedule(cfg) and cfg.data.size == checkpoint.size
    assert (cfg.data.resize, cfg.data.enlarge, cfg.data.flip) == ("halving", 1.1, True)
    tokenizer: Any = build(blueprint(cfg.tokenizer.run).tokenizer_spec or {}, "tokenizer")
    assert tokenizer.factor * schedule(cfg).grids[0][0] == checkpoint.size
    theirs = {key: parts.model_spec[key] for key in plain(cfg.backbone)}  # type: ignore[index]
    assert theirs == plain(cfg.backbone)
    assert parse_sampling(plain(cfg.sampling), "sampling") == Sampling(**checkpoint.sampling)
    trainer: Settings = made(cfg.trainer)
    assert trainer.steps == round(300 * IMAGENET / trainer.batch_size)
    rates = {rate(trainer, step) for step in (0, 1, trainer.steps // 2, trainer.steps - 1)}
    assert rates == {1e-4} and trainer.weight_decay == trainer.weight_decay_end == 0.05
    assert (trainer.batch_size, tuple(trainer.betas), trainer.clip) == (256, (0.9, 0.95), 1.0)
    assert (cfg.drop_label, cfg.backbone.token_drop, cfg.backbone.drop) == (0.1, 0.1, 0.1)
    assert data_name(composed(name, "data=latents")) == "latents"


def rate(trainer: Settings, step: int) -> float:
    return published_rate(
        step,
        kind=trainer.rate_kind,
        peak=trainer.rate,
        warmup_steps=trainer.warmup_steps,
        warmup_start=trainer.warmup_start,
        total_steps=trainer.steps,
        final=trainer.final_rate,
    )


@pytest.mark.parametrize(
    ("backbone", "words", "message"),
    [
        ("raster", [1, 2, 4], r"Raster decides single cells, but schedule=\[1, 2, 4\] is a ladder "
         r"of scales: use schedule=\{raster:4\}"),
        ("var", {"raster": 4}, r"VAR decides whole scales, but schedule=\{'raster': 4\} is of "
         r"single cells: use a ladder, .* or backbone=raster"),
        ("flowar", {"raster": [2, 3]}, r"FlowAR decides whole scales"),
    ],
)  # fmt: skip
def test_a_schedule_of_the_other_kind_is_refused(backbone: str, words: Any, message: str) -> None:
    spec = plain(composed("fashion-var", f"backbone={backbone}").backbone)
    with pytest.raises(UserError, match=message) as caught:
        geometry(spec, parse_schedule(words, "schedule"))
    assert "\n" not in str(caught.value)


def test_a_raster_may_be_wider_than_high() -> None:
    spec = plain(composed("llamagen-b").backbone)
    assert geometry(spec, Schedule.raster((2, 3))) == {"grid": [2, 3]}
    assert geometry(spec, Schedule.raster(4)) == {"grid": 4}


def test_a_value_that_others_refer_to_is_asked_for_by_its_name() -> None:
    with initialize_config_module("var.configs", version_base="1.3"):
        cfg = compose("train", ["experiment=fashion-flowar"])
    with pytest.raises(UserError, match=r"^data\.root must be given: say data\.root=…$"):
        check_complete(cfg)


def test_a_solver_that_there_is_not_is_told_before_the_training() -> None:
    cfg = composed("digits-var", "sampling.solver=eulr")
    head = Flow(FlowNet(channels=2, source=4, width=8, depth=1, cross=False, heads=2))
    with pytest.raises(UserError, match="unknown solver 'eulr': there are euler"):
        head.check(parse_sampling(plain(cfg.sampling), "sampling"))
