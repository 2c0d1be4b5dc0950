"""Exported programs compute what the models do, for any number of rows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

import var
from var import exporting
from var.condition import Condition
from var.errors import UserError
from var.exporting import export_decoder, export_step
from var.pipeline import Pipeline
from var.store import Run
from var.tokenizers.tokenizer import Canvas


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def reloaded(program: ExportedProgram, folder: Path) -> torch.nn.Module:
    """Return the program as those get it who have its file only."""
    torch.export.save(program, folder / "it.pt2")
    return torch.export.load(folder / "it.pt2").module()


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


@pytest.mark.parametrize("tiny_run", ["flowar", "raster", "mvar"], indirect=True)
def test_a_step_of_every_family_agrees_with_the_model(tiny_run: Run) -> None:
    pipe, labels = Pipeline(tiny_run), torch.tensor([1, -1, 2])
    tokens, span = drawn(pipe, 3)[:, : pipe.schedule.starts[1]], pipe.schedule[:2]
    with torch.no_grad():
        _, memories = exporting._Step(pipe, 0)(tokens[:, :0], labels, [])
        h = pipe.model(written(pipe, tokens).read(span), span, Condition(labels))
        expected = h if not hasattr(pipe.model.head, "linear") else pipe.model.head.linear(h)
    out, _ = export_step(pipe, 1).module()(tokens=tokens, labels=labels, memories=memories)
    close(out, expected[:, pipe.schedule.sizes[0] :])


def test_an_image_is_drawn_with_programs_alone(tiny_run: Run) -> None:
    pipe, labels = Pipeline(tiny_run), torch.tensor([1, 2])
    image = pipe([1, 2], guidance=(1, 1), top_k=1)
    tokens, memories = torch.zeros(2, 0, dtype=torch.int64), []
    for group in range(len(pipe.schedule)):
        step = export_step(pipe, group).module()
        logits, memories = step(tokens=tokens, labels=labels, memories=memories)
        tokens = torch.cat([tokens, logits.argmax(dim=-1)], dim=1)
    assert memories == [], "there is nothing after the last group"
    close(export_decoder(pipe).module()(tokens=tokens), image)
    assert torch.equal(pipe([1, 2], guidance=(1, 1), top_k=1), image), "the model is as it was"


@torch.no_grad()
def test_a_shipped_model_is_exported_reloaded_and_smaller(tmp_path: Path) -> None:
    pipe = var.load("digits-var")
    tokens, labels = drawn(pipe, 3), torch.tensor([3, -1, 4])
    decoder = reloaded(export_decoder(pipe), tmp_path)
    size = (tmp_path / "it.pt2").stat().st_size
    whole = sum(t.nbytes for t in pipe.run.tokenizer.state_dict().values())
    assert size < 0.8 * whole, "the encoder stays behind"
    for rows in (1, 3):
        canvas = written(pipe, tokens[:rows])
        close(decoder(tokens=tokens[:rows]), pipe.run.tokenizer.decode(canvas))
    first = export_step(pipe, 0).module()
    for rows in (1, 3):
        out, memories = first(tokens=tokens[:rows, :0], labels=labels[:rows], memories=[])
        span, blank = pipe.schedule[:1], pipe.run.tokenizer.blank(rows, pipe.schedule)
        h = pipe.model(blank.read(span), span, Condition(labels[:rows]))
        close(out, pipe.model.head.linear(h))
        assert len(memories) == len(pipe.model.blocks)


def test_what_cannot_be_exported_is_told(tiny_run: Run) -> None:
    pipe = Pipeline(tiny_run)
    with pytest.raises(UserError, match="there is no group 3: this model decides groups 0 to 2"):
        export_step(pipe, 3)
    with pytest.raises(UserError, match="tokenizer without a generator"):
        export_step(var.load("digits-vq"), 0)
