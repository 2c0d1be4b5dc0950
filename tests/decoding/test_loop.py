from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tiny import Family, same
from var.condition import Condition
from var.decoding.loop import decide, generate
from var.decoding.sequential import Sequential
from var.random import Rng
from var.sampling import Sampling
from var.tokenizers.tokenizer import Canvas

VAR = tiny.FAMILIES["var"]


class Listening(Sequential):
    """Sequential decoding that notes what the model was shown and what was drawn."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.inputs: list[Tensor] = []
        self.tokens: list[Tensor] = []
        model.register_forward_pre_hook(lambda _, args: self.inputs.append(args[0]))

    def settle(self, *args: object) -> list[Tensor]:
        drawn = super().settle(*args)
        self.tokens += drawn
        return drawn


def condition(rows: int = 3) -> Condition:
    return Condition(torch.arange(rows) % (tiny.CLASSES + 1) - 1)


def run(
    family: Family, decoding: Sequential, sampling: Sampling, rng: Rng | None, rows: int = 3
) -> Iterator[Canvas]:
    schedule = decoding.model.schedule
    return decide(family.tokenizer(), schedule, condition(rows), decoding, sampling, rng)


@tiny.samplings
def test_what_is_read_in_sampling_is_what_is_read_in_training(
    family: Family, sampling: Sampling
) -> None:
    decoding = Listening(family.model())
    *_, canvas = run(family, decoding, sampling, Rng.batch(0, 3))
    schedule = family.schedule
    written = family.tokenizer().blank(3, schedule).write(*decoding.tokens)
    for k, shown in enumerate(decoding.inputs):
        span = schedule[k : k + 1]
        teacher = sampling.guide_over(span).spread(written.read(schedule[:]))
        torch.testing.assert_close(shown, teacher[:, span.positions])
    assert len(decoding.inputs) == len(schedule)
    torch.testing.assert_close(canvas.latent, written.latent)


@tiny.families
def test_a_batch_of_eight_is_eight_batches_of_one(family: Family) -> None:
    sampling, tokenizer, model = family.guided, family.tokenizer(), family.model()
    together = Listening(model)
    list(run(family, together, sampling, Rng.batch(10, 8), rows=8))
    for i in range(8):
        alone = Listening(model)
        one = Condition(condition(8).labels[i : i + 1])
        list(decide(tokenizer, model.schedule, one, alone, sampling, Rng([10 + i])))
        same([group[i : i + 1] for group in together.tokens], alone.tokens)


@tiny.families
def test_of_no_class_there_is_no_second_half_to_read(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    none, model = Condition(torch.full((3,), -1)), family.model()

    def drawn() -> tuple[Canvas, set[int]]:
        decoding = Listening(model)
        args = family.tokenizer(), family.schedule, none, decoding, family.guided
        *_, canvas = decide(*args, Rng.batch(2, 3))
        return canvas, {len(shown) for shown in decoding.inputs}

    canvas, rows = drawn()
    monkeypatch.setattr(Condition, "empty", False)
    both, twice = drawn()
    assert (rows, twice) == ({3}, {6})
    torch.testing.assert_close(canvas.latent, both.latent)


@tiny.families
def test_each_turn_yields_a_canvas_with_one_more_group(family: Family) -> None:
    canvases = list(run(family, Sequential(family.model()), family.plain, Rng.batch(0, 3)))
    assert [canvas.done for canvas in canvases] == list(range(1, len(family.schedule) + 1))
    views = [canvas.read(family.schedule[:1]) for canvas in canvases]
    assert all(torch.equal(view, views[0]) for view in views), "canvases are immutable"


@tiny.families
def test_seeds_decide_and_nothing_else(family: Family) -> None:
    decoding = Sequential(family.model())
    torch.manual_seed(1)
    *_, first = run(family, decoding, family.plain, Rng.batch(0, 3))
    torch.manual_seed(2)
    # The same decoding, used once more.
    *_, again = run(family, decoding, family.plain, Rng.batch(0, 3))
    *_, other = run(family, decoding, family.plain, Rng.batch(1, 3))
    assert torch.equal(first.latent, again.latent)
    assert not torch.allclose(first.latent, other.latent, atol=1e-3)


@pytest.mark.parametrize("name", ["var", "raster"])
def test_without_streams_every_token_is_the_most_likely(name: str) -> None:
    family = tiny.FAMILIES[name]
    model, span = family.model(), family.schedule[:]
    decoding = Listening(model)
    *_, canvas = run(family, decoding, Sampling(), rng=None)
    h = model(canvas.read(span), span, condition())
    logits = model.head(h, span, Sampling().guide(0)).logits
    assert torch.equal(torch.cat(decoding.tokens, dim=1), logits.argmax(dim=-1))


@tiny.families
def test_guidance_of_one_is_no_guidance(family: Family) -> None:
    plain, guided = Listening(family.model()), Listening(family.model())
    list(run(family, plain, family.plain, Rng.batch(0, 3)))
    # Rows are doubled as soon as any step is guided, here by next to nothing.
    nearly = replace(family.plain, guidance=(1.0, 1.0 + 1e-6))
    list(run(family, guided, nearly, Rng.batch(0, 3)))
    assert plain.inputs[0].shape[0] == 3 and guided.inputs[0].shape[0] == 6
    same(plain.tokens, guided.tokens)


@tiny.families
def test_guidance_moves_away_from_what_no_class_predicts(family: Family) -> None:
    drawn = []
    for guidance in ((1.0, 1.0), (1.0, 4.0)):
        sampling = replace(family.plain, guidance=guidance)
        drawn.append(list(run(family, Sequential(family.model()), sampling, Rng.batch(0, 3))))
    (first, *_, plain), (again, *_, guided) = drawn
    same(first.latent, again.latent)  # it grows from none at the first group
    same(plain.latent[:1], guided.latent[:1])  # no class is the first image's condition
    for i in (1, 2):
        assert not torch.allclose(plain.latent[i], guided.latent[i], atol=1e-3)


def test_smooth_sampling_mixes_codes() -> None:
    decoding = Listening(tiny.model())
    list(run(VAR, decoding, replace(VAR.samplings[2], guidance=0), Rng.batch(0, 3)))
    assert all(t.is_floating_point() and t.shape[-1] == tiny.VOCABULARY for t in decoding.tokens)


@tiny.families
def test_a_run_can_go_on_from_a_canvas(family: Family) -> None:
    decoding, greedy = Sequential(family.model()), replace(family.plain, guidance=1)
    canvases = list(run(family, decoding, greedy, rng=None))
    # Other images, of which nothing may be left.
    list(run(family, decoding, family.plain, Rng.batch(3, 3)))
    begun = canvases[1]
    rest = decide(family.tokenizer(), family.schedule, condition(), decoding, greedy, canvas=begun)
    *_, last = rest
    same(last.latent, canvases[-1].latent)


@tiny.families
def test_canvases_are_ordinary_tensors(family: Family) -> None:
    *_, canvas = run(family, Sequential(family.model()), family.plain, Rng.batch(0, 3))
    weight = torch.ones((), requires_grad=True)
    (canvas.latent * weight).sum().backward()  # what inference tensors would refuse
    assert weight.grad is not None and not canvas.latent.requires_grad


@tiny.families
def test_generate_decodes_the_last_canvas(family: Family) -> None:
    class Naked(torch.nn.Module):
        """A tokenizer whose images are its latents."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = family.tokenizer()

        def blank(self, *args: object) -> Canvas:
            return self.inner.blank(*args)

        def decode(self, canvas: Canvas) -> Tensor:
            return canvas.latent

    decoding, sampling = Sequential(family.model()), family.plain
    *_, canvas = run(family, decoding, sampling, Rng.batch(0, 3))
    image = generate(Naked(), family.schedule, condition(), decoding, sampling, Rng.batch(0, 3))
    assert torch.equal(image, canvas.latent)
