from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests import tiny
from var.decoding.loop import decide, generate
from var.decoding.sequential import Sequential
from var.models.var import VAR
from var.random import Rng
from var.sampling import Condition, Sampling
from var.tokenizers.residual import Residual

SCHEDULE = tiny.SCHEDULE
SAMPLINGS = [
    Sampling(),
    Sampling(guidance=2.0, top_k=9, top_p=0.9),
    Sampling(guidance=(0.5, 3.0), temperature=0.8, smooth=True),
]


class Listening(Sequential):
    """Sequential decoding that notes what the model was shown and what was drawn."""

    def __init__(self, model: VAR) -> None:
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
    decoding: Sequential, sampling: Sampling, rng: Rng | None, rows: int = 3
) -> Iterator[Residual]:
    return decide(tiny.tokenizer(), SCHEDULE, condition(rows), decoding, sampling, rng)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_is_read_in_sampling_is_what_is_read_in_training(sampling: Sampling) -> None:
    decoding = Listening(tiny.model())
    *_, canvas = run(decoding, sampling, Rng.batch(0, 3))
    written = tiny.tokenizer().blank(3, SCHEDULE).write(*decoding.tokens)
    teacher = sampling.guide(0).spread(written.read(SCHEDULE[:]))
    torch.testing.assert_close(torch.cat(decoding.inputs, dim=1), teacher)
    torch.testing.assert_close(canvas.latent, written.latent)


def test_a_batch_of_eight_is_eight_batches_of_one() -> None:
    sampling, tokenizer, model = SAMPLINGS[1], tiny.tokenizer(), tiny.model()
    together = Listening(model)
    list(run(together, sampling, Rng.batch(10, 8), rows=8))
    for i in range(8):
        alone = Listening(model)
        one = Condition(condition(8).labels[i : i + 1])
        list(decide(tokenizer, SCHEDULE, one, alone, sampling, Rng([10 + i])))
        for a, b in zip(together.tokens, alone.tokens, strict=True):
            assert torch.equal(a[i : i + 1], b)


def test_each_turn_yields_a_canvas_with_one_more_group() -> None:
    canvases = list(run(Sequential(tiny.model()), Sampling(), Rng.batch(0, 3)))
    assert [canvas.done for canvas in canvases] == [1, 2, 3, 4]
    views = [canvas.read(SCHEDULE[:1]) for canvas in canvases]
    assert all(torch.equal(view, views[0]) for view in views), "canvases are immutable"


def test_seeds_decide_and_nothing_else() -> None:
    decoding = Sequential(tiny.model())
    torch.manual_seed(1)
    *_, first = run(decoding, Sampling(), Rng.batch(0, 3))
    torch.manual_seed(2)
    *_, again = run(decoding, Sampling(), Rng.batch(0, 3))  # the same decoding, used once more
    *_, other = run(decoding, Sampling(), Rng.batch(1, 3))
    assert torch.equal(first.latent, again.latent)
    assert not torch.equal(first.latent, other.latent)


def test_without_streams_every_token_is_the_most_likely() -> None:
    model = tiny.model()
    decoding = Listening(model)
    *_, canvas = run(decoding, Sampling(), rng=None)
    h = model(canvas.read(SCHEDULE[:]), SCHEDULE[:], condition())
    logits = model.head(h, SCHEDULE[:], Sampling().guide(0)).logits
    assert torch.equal(torch.cat(decoding.tokens, dim=1), logits.argmax(dim=-1))


def test_guidance_of_one_is_no_guidance() -> None:
    plain, guided = Listening(tiny.model()), Listening(tiny.model())
    list(run(plain, Sampling(guidance=0), Rng.batch(0, 3)))
    # Rows are doubled as soon as any step is guided, here by next to nothing.
    list(run(guided, Sampling(guidance=(1.0, 1.0 + 1e-6)), Rng.batch(0, 3)))
    assert guided.inputs[0].shape[0] == 6
    for a, b in zip(plain.tokens, guided.tokens, strict=True):
        assert torch.equal(a, b)


def test_smooth_sampling_mixes_codes() -> None:
    decoding = Listening(tiny.model())
    list(run(decoding, replace(SAMPLINGS[2], guidance=0), Rng.batch(0, 3)))
    assert all(t.is_floating_point() and t.shape[-1] == tiny.VOCABULARY for t in decoding.tokens)


def test_a_run_can_go_on_from_a_canvas() -> None:
    tokenizer, decoding, greedy = tiny.tokenizer(), Sequential(tiny.model()), Sampling(guidance=1)
    canvases = list(run(decoding, greedy, rng=None))
    list(run(decoding, Sampling(), Rng.batch(3, 3)))  # other images, of which nothing may be left
    rest = decide(tokenizer, SCHEDULE, condition(), decoding, greedy, canvas=canvases[1])
    *_, last = rest
    torch.testing.assert_close(last.latent, canvases[-1].latent)


def test_canvases_are_ordinary_tensors() -> None:
    *_, canvas = run(Sequential(tiny.model()), Sampling(), Rng.batch(0, 3))
    weight = torch.ones((), requires_grad=True)
    (canvas.latent * weight).sum().backward()  # what inference tensors would refuse
    assert weight.grad is not None and not canvas.latent.requires_grad


def test_generate_decodes_the_last_canvas() -> None:
    class Naked(torch.nn.Module):
        """A tokenizer whose images are its latents."""

        def __init__(self) -> None:
            super().__init__()
            self.quantizer = tiny.tokenizer()

        def blank(self, *args: object) -> Residual:
            return self.quantizer.blank(*args)

        def decode(self, canvas: Residual) -> Tensor:
            return canvas.latent

    decoding = Sequential(tiny.model())
    *_, canvas = run(decoding, Sampling(), Rng.batch(0, 3))
    image = generate(Naked(), SCHEDULE, condition(), decoding, Sampling(), Rng.batch(0, 3))
    assert torch.equal(image, canvas.latent)
