"""Controls follow the model: what they offer, and what their values mean."""

from typing import Any

import pytest

from tests.conftest import RUNS
from var.app.controls import FILTERS, controls, setting
from var.errors import UserError
from var.pipeline import Pipeline
from var.store import Run

CODES = {"temperature", "top_k", "top_p"}
OFFERED = {
    "var": (CODES | {"smooth"}, ["sequential", "collaborative"], {"static", "dense", "scale"}),
    "flowar": (
        {"temperature", "steps", "solver"},
        ["sequential", "collaborative"],
        {"static", "dense", "scale"},
    ),
    "raster": (CODES, ["sequential", "jacobi", "jacobi_published"], {"static", "dense"}),
    "mvar": (CODES | {"smooth"}, ["sequential", "collaborative"], {"static", "dense"}),
}


def values(known: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return the values that controls begin with, some of them changed."""
    return {name: control["value"] for name, control in known.items()} | changes


@RUNS
def test_only_what_suits_the_model_is_offered(
    tiny_run: Run, request: pytest.FixtureRequest
) -> None:
    known = controls(Pipeline(tiny_run), ["other"])
    filters, decodings, caches = OFFERED[request.node.callspec.params["tiny_run"]]
    assert {name for name in FILTERS if known[name]["visible"]} == filters
    assert known["decoding"]["choices"] == decodings
    assert known["cache"]["choices"][0] == "static"
    assert {*known["cache"]["choices"]} == caches
    assert [id for _, id in known["labels"]["choices"]] == [0, 1, 2, -1]


@RUNS
def test_controls_begin_at_what_the_model_recommends(tiny_run: Run) -> None:
    pipe = Pipeline(tiny_run)
    known = controls(pipe, [])
    chosen = setting("a", values(known), known)
    assert pipe.settings(**chosen.sampling) == tiny_run.recipe.sampling
    assert (chosen.decoding, chosen.cache) == ({"name": "sequential"}, {"name": "static"})


def test_a_choice_brings_its_settings(tiny_run: Run) -> None:
    known = controls(Pipeline(tiny_run), ["other"])
    assert not any(known[part]["visible"] for part in ("window", "closer", "switch", "budget"))
    changed = values(known, decoding="collaborative", switch=2, cache="scale")
    chosen = setting("a", changed, known)
    assert chosen.decoding == {"name": "collaborative", "closer": "other", "switch": 2}
    assert chosen.cache == {"name": "scale", "budget": 0.1}


def test_an_empty_field_is_told_if_it_counts(tiny_run: Run) -> None:
    known = controls(Pipeline(tiny_run), [])
    with pytest.raises(UserError, match="Top-k .* is empty"):
        setting("a", values(known, top_k=None), known)
    setting("a", values(known, steps=None, window=None), known)


def test_what_the_model_before_it_had_is_not_asked_of_another_one(tiny_run: Run) -> None:
    known = controls(Pipeline(tiny_run), [])
    assert setting("a", values(known, decoding="jacobi"), known).decoding["name"] == "sequential"


def test_a_field_out_of_range_is_told_by_its_label(tiny_run: Run) -> None:
    known = controls(Pipeline(tiny_run), ["other"])
    with pytest.raises(UserError, match="Scales before it takes over is 9: use 1 to 2"):
        setting("a", values(known, decoding="collaborative", switch=9), known)


def test_a_tokenizer_alone_has_none(tiny_run: Run) -> None:
    from dataclasses import replace

    run = Run(replace(tiny_run.recipe, backbone=None), tiny_run.tokenizer)
    with pytest.raises(UserError, match="tokenizer without a generator"):
        controls(Pipeline(run), [])
