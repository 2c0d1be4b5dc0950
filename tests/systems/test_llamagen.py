"""LlamaGen as published: names and shapes of weights, configurations, the same numbers again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import var
from tests import tiny
from var import recipe
from var.condition import Condition
from var.errors import UserError
from var.models.raster import Raster
from var.published import CHECKPOINTS, blueprint, build
from var.recipe import Recipe
from var.schedule import Schedule
from var.systems import llamagen_keys, llamagen_vq
from var.systems.base import Parts
from var.tokenizers.singlescale import VQ

WIDTH, HEADS, DEPTH, CODES, CLASSES, SIDE = 16, 2, 2, 24, 5, 3
TEXT = {"model_type": "t2i", "caption_dim": 6, "cls_token_num": 120}
MODEL = {
    "dim": WIDTH,
    "n_layer": DEPTH,
    "n_head": HEADS,
    "multiple_of": 8,
    "vocab_size": CODES,
    "block_size": SIDE * SIDE,
    "num_classes": CLASSES,
}
VQ_CONFIG = {
    "codebook_size": CODES, "codebook_embed_dim": 4, "z_channels": 8, "ch": 32, "ch_mult": (1, 1),
    "num_res_blocks": 1, "image_size": 2 * SIDE,
}  # fmt: skip
HIDDEN = 48  # 8 / 3 of the width, up to a multiple of 8
KINDS = pytest.mark.parametrize("text", [False, True], ids=["classes", "texts"])


def model(text: bool = False, **changes: Any) -> Raster:
    """Return the transformer that `MODEL` describes, in evaluation mode."""
    source = {"text": 6, "text_length": 120} if text else {"classes": CLASSES}
    sizes = {"vocabulary": CODES, "grid": SIDE, "depth": DEPTH, "width": WIDTH, "heads": HEADS}
    made = tiny.shaken(Raster(**{**sizes, "hidden": HIDDEN, **source, **changes}), scale=0.3)
    if text:
        made.source.null.copy_(torch.randn(120, 6, generator=torch.Generator().manual_seed(4)))
    return made.eval()  # type: ignore[return-value]


def state(text: bool = False, **changes: Any) -> dict[str, Tensor]:
    """Return the published state of `model(text)`, with what follows from its configuration."""
    derived = {"freqs_cis": torch.zeros(10, 4, 2), "causal_mask": torch.zeros(1, 16, 16)}
    derived |= {f"layers.1.attention.kv_cache.{part}_cache": torch.zeros(2) for part in "kv"}
    return {**llamagen_keys.MODEL.publish(model(text, **changes).state_dict()), **derived}


def built(text: bool = False, given: dict[str, Tensor] | None = None, **changes: Any) -> Parts:
    config = {**MODEL, **(TEXT if text else {}), **changes}
    return build("llamagen", config, state(text) if given is None else given)


@torch.no_grad()
def features(made: nn.Module, text: bool = False) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    x = torch.randint(CODES, (3, SIDE * SIDE), generator=rng)
    condition = Condition(torch.tensor([0, 4, -1]))
    if text:
        condition = Condition(torch.tensor([0, 0, -1]), torch.randn(3, 120, 6, generator=rng))
    return made(x, Schedule.raster(SIDE)[:], condition)


def published_shapes(text: bool) -> dict[str, tuple[int, ...]]:
    """Return the published names and shapes of weights (section 2), without what is derived."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (CODES, WIDTH),
        "norm.weight": (WIDTH,),
        "output.weight": (CODES, WIDTH),
    }
    if text:
        shapes["cls_embedding.cap_proj.fc1.weight"] = (WIDTH, 6)
        shapes["cls_embedding.cap_proj.fc2.weight"] = (WIDTH, WIDTH)
        shapes["cls_embedding.uncond_embedding"] = (120, 6)
    else:
        shapes["cls_embedding.embedding_table.weight"] = (CLASSES + 1, WIDTH)
    for i in range(DEPTH):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * WIDTH, WIDTH),
            f"layers.{i}.attention.wo.weight": (WIDTH, WIDTH),
            f"layers.{i}.feed_forward.w1.weight": (HIDDEN, WIDTH),
            f"layers.{i}.feed_forward.w2.weight": (WIDTH, HIDDEN),
            f"layers.{i}.feed_forward.w3.weight": (HIDDEN, WIDTH),
            f"layers.{i}.attention_norm.weight": (WIDTH,),
            f"layers.{i}.ffn_norm.weight": (WIDTH,),
        }
    return shapes


@KINDS
def test_weights_have_the_published_names_and_shapes(text: bool) -> None:
    published = llamagen_keys.MODEL.publish(model(text).state_dict())
    assert {name: tuple(t.shape) for name, t in published.items()} == published_shapes(text)
    back = llamagen_keys.MODEL.adopt(published)
    assert all(torch.equal(t, back[name]) for name, t in model(text).state_dict().items())


@KINDS
def test_a_published_state_makes_the_same_numbers(text: bool) -> None:
    parts, ours = built(text), model(text)
    assert parts.schedule == Schedule.raster(SIDE) and parts.tokenizer is None
    assert parts.model is not None
    assert torch.equal(features(parts.model.eval(), text), features(ours, text))


@KINDS
def test_the_spec_rebuilds_the_model_and_can_be_stored(text: bool) -> None:
    parts = built(text)
    assert parts.model_spec is not None and parts.schedule is not None and parts.model is not None
    again = recipe.build(parts.model_spec, "it")
    shapes = {name: t.shape for name, t in again.state_dict().items()}
    assert shapes == {name: t.shape for name, t in parts.model.state_dict().items()}
    kept = Recipe({"_target_": "x"}, parts.schedule, parts.model_spec)
    assert Recipe.parse(kept.text(), "it").backbone == parts.model_spec


def test_keywords_that_are_left_out_are_as_published() -> None:
    drops = {name: (built().model_spec or {})[name] for name in ("token_drop", "drop")}
    assert drops == {"token_drop": 0.1, "drop": 0.1}
    changed = built(token_dropout_p=0.3, resid_dropout_p=0.2, ffn_dropout_p=0.2).model_spec or {}
    assert (changed["token_drop"], changed["drop"]) == (0.3, 0.2)


def test_settings_without_effect_have_none() -> None:
    idle = {"initializer_range": 0.5, "max_batch_size": 3, "max_seq_len": 7}
    assert built(**idle).model_spec == built().model_spec


def test_the_width_in_the_middle_follows_the_published_rule() -> None:
    # 8 / 3 of 16 is 42, 1.3 times that 54, and 56 the next multiple of 8.
    parts = built(given=state(hidden=56), ffn_dim_multiplier=1.3)
    assert (parts.model_spec or {})["hidden"] == 56


def test_without_dropped_labels_there_is_no_null_class() -> None:
    parts = built(given=state(null_class=False), class_dropout_prob=0.0)
    assert parts.model is not None
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4"):
        features(parts.model)


def test_few_heads_of_keys_are_understood() -> None:
    parts = built(given=state(kv_heads=1), n_kv_head=1)
    assert parts.model is not None
    assert torch.equal(features(parts.model.eval()), features(model(kv_heads=1)))


def test_of_the_null_text_as_much_counts_as_texts_are_long() -> None:
    parts = built(True, cls_token_num=7)
    assert parts.model is not None
    null = parts.model.get_buffer("source.null")
    assert torch.equal(null, state(True)["cls_embedding.uncond_embedding"][:7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "1 missing: norm.weight$"),
        ({"layers.2.ffn_norm.weight": torch.zeros(WIDTH)}, "unexpected: layers.2.ffn_norm.weight$"),
        (
            {"output.weight": torch.zeros(CODES + 1, WIDTH)},
            r"of another shape: output.weight \(25, 16\) instead of \(24, 16\)$",
        ),
        (
            {"cls_embedding.embedding_table.weight": torch.zeros(CLASSES, WIDTH)},
            r"cls_embedding.embedding_table.weight \(5, 16\) instead of \(6, 16\)$",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_published_names(
    change: dict, message: str
) -> None:
    given = {key: t for key, t in {**state(), **change}.items() if t is not None}
    with pytest.raises(
        UserError, match=f"state of LlamaGen does not fit its configuration: .*{message}"
    ):
        built(given=given)
    with pytest.raises(UserError, match="missing: cls_embedding.cap_proj.fc1.weight, "):
        built(True, state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn_dropout_p": 0.0}, "resid_dropout_p=0.1 and ffn_dropout_p=0.0 cannot be run: they"),
        ({"block_size": 10}, "block_size=10 cannot be run: it must be a square"),
        ({"block_size": 0}, "block_size=0 cannot be run: it must be a square"),
        ({"cls_token_num": 4}, "cls_token_num=4 cannot be run: it must be 1"),
        ({"model_type": "v2i"}, "unknown model_type v2i; there are: c2i, t2i"),
        ({"colour": 1}, "unknown keys in the configuration of LlamaGen: colour"),
        ({"n_head": 3}, "LlamaGen: Raster cannot be built of these: 3 heads do not divide"),
    ],
)
def test_a_wrong_configuration_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        built(**changes)
    assert "\n" not in str(caught.value)


def test_what_is_missing_in_a_configuration_is_named() -> None:
    short = {key: value for key, value in MODEL.items() if key != "n_layer"}
    with pytest.raises(UserError, match="missing keys in the configuration of LlamaGen: n_layer"):
        build("llamagen", {"model": short, "cfg_scale": 2.0}, state())
    with pytest.raises(UserError, match="expected model, dim or codebook_size, .*; got colour"):
        build("llamagen", {"colour": 1}, state())


def both() -> dict[str, Tensor]:
    spec = llamagen_vq.blueprint(VQ_CONFIG).tokenizer_spec
    assert spec is not None
    vq = tiny.shaken(recipe.build(spec, "it", device="cpu"), scale=0.1)
    given = {f"vq/{key}": t for key, t in llamagen_vq.table(2).publish(vq.state_dict()).items()}
    return given | {f"model/{key}": tensor for key, tensor in state().items()}


def test_model_and_tokenizer_are_built_from_one_state() -> None:
    parts = build("llamagen", {"model": MODEL, "vq": VQ_CONFIG}, both())
    assert isinstance(parts.model, Raster) and isinstance(parts.tokenizer, VQ)
    assert parts.schedule == Schedule.raster(SIDE)
    assert torch.equal(features(parts.model.eval()), features(model()))
    with pytest.raises(UserError, match="mask begins with none of: model/, vq/"):
        build("llamagen", {"model": MODEL, "vq": VQ_CONFIG}, {**both(), "mask": torch.zeros(1)})


def test_a_model_and_a_tokenizer_of_other_codes_are_refused() -> None:
    given = {key: t for key, t in both().items() if key.startswith("vq/")}
    given |= {f"model/{key}": tensor for key, tensor in state(vocabulary=9).items()}
    with pytest.raises(UserError, match="the model is for 9 codes, the tokenizer has 24"):
        build("llamagen", {"model": {**MODEL, "vocab_size": 9}, "vq": VQ_CONFIG}, given)


def test_a_released_system_draws_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = both()
    for prefix in ("model", "vq"):  # wrapped, as they are published
        part = {k.partition("/")[2]: t for k, t in given.items() if k.startswith(prefix)}
        torch.save({"model": part, "steps": 3}, tmp_path / f"{prefix}.pt")
    toy = replace(
        CHECKPOINTS["llamagen-b"],
        files={"model": "model.pt", "vq": "vq.pt"},
        config={"model": MODEL, "vq": VQ_CONFIG},
        size=2 * SIDE,
    )
    monkeypatch.setitem(CHECKPOINTS, "toy-llamagen", toy)
    pipe = var.load("toy-llamagen", files=tmp_path)
    images = pipe(labels=[3, 1, -1], seed=1)
    assert images.shape == (3, 3, 2 * SIDE, 2 * SIDE) and images.isfinite().all()
    pipe.save(tmp_path / "run")
    assert torch.equal(var.load(tmp_path / "run")(labels=[3, 1, -1], seed=1), images)
    assert not torch.equal(pipe(labels=[3, 1, -1], seed=1, guidance=0), images)


# Parameters of the published table; side of the images, guidance of the published figures.
RELEASED = {
    "llamagen-b": (110_888_448, 256, 2.0),
    "llamagen-b-384": (110_888_448, 384, 2.0),
    "llamagen-l": (342_910_976, 256, 2.0),
    "llamagen-l-384": (342_910_976, 384, 2.0),
    "llamagen-xl": (774_699_520, 384, 1.75),
    "llamagen-xxl": (1_410_972_672, 384, 1.75),
    "llamagen-3b": (3_096_659_200, 384, 1.65),
    "llamagen-t2i-256": (777_678_080, 256, 7.5),
    "llamagen-t2i-512": (777_678_080, 512, 7.5),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_models_are_as_large_as_published(name: str) -> None:
    count, size, scale = RELEASED[name]
    parts, checkpoint = blueprint(name), CHECKPOINTS[name]
    assert parts.model_spec is not None and parts.tokenizer_spec is not None
    made = recipe.build(parts.model_spec, name)
    # What stands for no text is no parameter: it is not trained.
    assert sum(p.numel() for p in made.parameters()) == count == checkpoint.parameters
    assert parts.schedule == Schedule.raster(size // 16) and checkpoint.size == size
    assert checkpoint.sampling["guidance"] == (scale, scale)
    assert parts.tokenizer_spec["vocabulary"] == parts.model_spec["vocabulary"] == 16384
    texts = "t2i" in name
    assert (dict(made.named_buffers()).keys() == {"source.null"}) is texts
    home = "peizesun/llamagen_t2i" if texts else "FoundationVision/LlamaGen"
    assert checkpoint.repository == home
    assert checkpoint.files["vq"] == ("vq_ds16_t2i.pt" if texts else "vq_ds16_c2i.pt")
