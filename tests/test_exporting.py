"""Exported programs compute what the models do, for any number of rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import var
from tests.conftest import make_run
from var import exporting
from var.condition import Condition
from var.errors import UserError
from var.exporting import export_decoder, export_step
from var.pipeline import Pipeline
from var.schedule import Schedule
from var.store import Run
from var.tokenizers.tokenizer import Canvas
from var.untrained import untrained

LADDER = [1, 4]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def drawn(pipe: Pipeline, rows: int) -> Tensor:
    """Return tokens of all groups at random."""
    rng, length = torch.Generator().manual_seed(1), pipe.schedule.starts[-1]
    terms = pipe.run.tokenizer.terms
    if "vocabulary" in terms:
        return torch.randint(terms["vocabulary"], (rows, length), generator=rng)
    return torch.randn(rows, length, terms["channels"], generator=rng)


def written(pipe: Pipeline, tokens: Tensor) -> Canvas:
    """Return the canvas of the tokens of the first groups."""
    groups = pipe.schedule.starts.index(tokens.shape[1])
    canvas = pipe.run.tokenizer.blank(len(tokens), pipe.schedule)
    return canvas.write(*tokens.split(pipe.schedule.sizes[:groups], dim=1))


@pytest.fixture
def pipe(request: pytest.FixtureRequest) -> Pipeline:
    """The pipeline of a run of as few layers and groups as there can be: tracing is slow."""
    run = make_run(family=getattr(request, "param", "var"))
    recipe, spec = run.recipe, {**(run.recipe.backbone or {})}
    if "depth" not in spec:
        return Pipeline(run)
    spec["depth"] = 1
    if "ladder" in spec:
        spec["ladder"] = LADDER
        recipe = replace(recipe, schedule=Schedule.scales(LADDER))
        recipe = replace(recipe, tokenizer={**recipe.tokenizer, "scales": len(LADDER)})
    tokenizer, model = untrained(recipe.tokenizer, "tokenizer"), untrained(spec, "backbone")
    return Pipeline(Run(replace(recipe, backbone=spec), tokenizer, model))


@pytest.mark.parametrize("pipe", ["flowar", "raster", "mvar"], indirect=True)
def test_a_step_of_every_family_agrees_with_the_model(pipe: Pipeline) -> None:
    labels = torch.tensor([1, -1, 2])
    tokens, span = drawn(pipe, 3)[:, : pipe.schedule.starts[1]], pipe.schedule[:2]
    with torch.no_grad():
        _, memories = exporting._Step(pipe, 0)(tokens[:, :0], labels, [])
        h = pipe.model(written(pipe, tokens).read(span), span, Condition(labels))
        expected = h if not hasattr(pipe.model.head, "linear") else pipe.model.head.linear(h)
    out, _ = export_step(pipe, 1).module()(tokens=tokens, labels=labels, memories=memories)
    close(out, expected[:, pipe.schedule.sizes[0] :])


def test_images_are_drawn_with_programs_alone(pipe: Pipeline, tmp_path: Path) -> None:
    labels = torch.tensor([1, 2, 0])
    image = pipe([1, 2, 0], guidance=(1, 1), top_k=1)
    steps = [export_step(pipe, group).module() for group in range(len(pipe.schedule))]
    program = export_decoder(pipe)
    torch.export.save(program, tmp_path / "it.pt2")
    decoder = torch.export.load(tmp_path / "it.pt2").module()
    for rows in (1, 3):
        tokens, memories = torch.zeros(rows, 0, dtype=torch.int64), []
        for step in steps:
            logits, memories = step(tokens=tokens, labels=labels[:rows], memories=memories)
            tokens = torch.cat([tokens, logits.argmax(dim=-1)], dim=1)
        assert memories == [], "there is nothing after the last group"
        close(decoder(tokens=tokens), image[:rows])
    assert torch.equal(pipe([1, 2, 0], guidance=(1, 1), top_k=1), image), "the model is as it was"
    held = sum(t.nbytes for t in program.constants.values() if isinstance(t, Tensor))
    whole = sum(t.nbytes for t in pipe.run.tokenizer.state_dict().values())
    assert not program.state_dict and 0 < held < 0.8 * whole, "the encoder stays behind"


def test_what_cannot_be_exported_is_told(tiny_run: Run) -> None:
    pipe = Pipeline(tiny_run)
    with pytest.raises(UserError, match="there is no group 3: this model decides groups 0 to 2"):
        export_step(pipe, 3)
    with pytest.raises(UserError, match="tokenizer without a generator"):
        export_step(var.load("digits-vq"), 0)
