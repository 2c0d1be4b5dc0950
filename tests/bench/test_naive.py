from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.bench.conftest import MakeRow
from var.bench.naive import NaiveCache, naive
from var.bench.naive_heads import NaivePrediction, naive_head
from var.bench.rows import Row
from var.bench.stopwatch import Stopwatch
from var.bench.subjects import Combination
from var.condition import Condition
from var.errors import UserError
from var.heads.categorical import CategoricalPrediction
from var.models.nextscale import Block
from var.nn.mamba import Mamba2
from var.pipeline import Pipeline
from var.sampling import Sampling
from var.store import Run
from var.tokenizers.autoencoder import ResBlock, Upsample

SAMPLINGS = [
    Sampling(guidance=1.5, top_k=9, top_p=0.8),
    Sampling(guidance=0.0, temperature=0.7, top_p=0.5, temper_last=True),
    Sampling(guidance=(0.5, 3.0), temperature=1.3, top_k=20),
]
RASTERS = [
    *SAMPLINGS,
    Sampling(guidance=(3.0, 2.0), guided_groups=5, temperature=0.9),
    Sampling(guidance=(3.0, 2.0), guided_groups=0),
]
FLOWS = [
    Sampling(guidance=2.0, steps=3),
    Sampling(guidance=0.0, steps=2, solver="heun"),
    Sampling(guidance=(1.0, 3.0), steps=8, solver="published", interval=0.7, temperature=0.9),
]


def drawn(row: Row) -> tuple[Tensor, Tensor]:
    """Return the images of a row and all its tokens."""
    watch = Stopwatch()
    images = row.draw(watch)
    return images, torch.cat(watch.tokens, dim=1)


def naive_row(row: Row, run: Run, dtype: torch.dtype = torch.float32) -> Row:
    """Return the naive row of the same settings."""
    subject = row.subject
    assert isinstance(subject, Combination)
    plain = Combination(
        Pipeline(naive(run, dtype)),
        decoding="sequential",
        cache=NaiveCache,
        sampling=subject.sampling,
        greedy=subject.greedy,
    )
    return replace(row, subject=plain)


NEXT_SCALE = pytest.mark.parametrize("tiny_run", ["var", "mvar"], indirect=True)


@NEXT_SCALE
@pytest.mark.parametrize("sampling", [*SAMPLINGS, Sampling(guidance=(3.0, 2.0), guided_groups=2)])
@pytest.mark.parametrize("greedy", [False, True])
def test_the_naive_way_draws_the_same(
    make_row: MakeRow, tiny_run: Run, sampling: Sampling, greedy: bool
) -> None:
    row = make_row(sampling=sampling, greedy=greedy, batch=3)
    images, tokens = drawn(row)
    plain_images, plain_tokens = drawn(naive_row(row, tiny_run))
    assert torch.equal(tokens, plain_tokens) and len(tokens.unique()) > 5
    torch.testing.assert_close(images, plain_images)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_sorting_everything_excludes_the_same_codes(sampling: Sampling) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 50, 64, generator=rng)
    logits[:2] = logits[:2].round()  # with ties
    ours = CategoricalPrediction(logits).shaped(sampling).logits
    torch.testing.assert_close(NaivePrediction(logits).shaped(sampling).logits, ours)


@NEXT_SCALE
def test_the_modulation_is_computed_at_every_scale(make_row: MakeRow, tiny_run: Run) -> None:
    calls: list[nn.Module] = []
    row = naive_row(make_row(), tiny_run)
    assert isinstance(row.subject, Combination) and row.subject.pipe.run.model is not None
    for part in row.subject.pipe.run.model.modules():
        if isinstance(part, Block):
            part.modulation.register_forward_hook(lambda module, *_: calls.append(module))
    row.draw()
    assert len(calls) == 2 * 3


def test_fast_routes_of_the_loaded_run_are_left_out(tiny_run: Run) -> None:
    plain = naive(tiny_run)
    kinds = {type(part) for part in plain.tokenizer.modules()}
    assert Upsample not in kinds
    blocks = [part for part in plain.tokenizer.modules() if isinstance(part, ResBlock)]
    assert blocks and not any("forward" in vars(block) for block in blocks)
    assert all(p.is_contiguous() for p in plain.tokenizer.parameters())
    assert plain.model is not None
    assert not any(getattr(part, "pack", None) for part in plain.model.modules())


def test_half_precision_is_a_matter_of_products_not_of_weights(
    make_row: MakeRow, tiny_run: Run
) -> None:
    row = naive_row(make_row(), tiny_run, torch.bfloat16)
    assert isinstance(row.subject, Combination)
    run = row.subject.pipe.run
    assert run.model is not None
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    seen: list[torch.dtype] = []
    run.model.head.head.linear.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    images = row.draw()
    assert set(seen) == {torch.bfloat16} and images.dtype == torch.float32


@pytest.mark.parametrize("tiny_run", ["flowar"], indirect=True)
@pytest.mark.parametrize("sampling", FLOWS)
@pytest.mark.parametrize("greedy", [False, True])
def test_the_naive_way_follows_a_flow_to_the_same_place(
    make_row: MakeRow, tiny_run: Run, sampling: Sampling, greedy: bool
) -> None:
    row = make_row(sampling=sampling, greedy=greedy, batch=3)
    images, tokens = drawn(row)
    plain_images, plain_tokens = drawn(naive_row(row, tiny_run))
    torch.testing.assert_close(tokens, plain_tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(images, plain_images, rtol=0, atol=1e-4)
    assert tokens.std() > 0.1


@pytest.mark.parametrize("tiny_run", ["raster"], indirect=True)
@pytest.mark.parametrize("sampling", RASTERS)
@pytest.mark.parametrize("greedy", [False, True])
def test_the_naive_way_reads_token_after_token_to_the_same_end(
    make_row: MakeRow, tiny_run: Run, sampling: Sampling, greedy: bool
) -> None:
    row = make_row(sampling=sampling, greedy=greedy, batch=3)
    images, tokens = drawn(row)
    plain_images, plain_tokens = drawn(naive_row(row, tiny_run))
    assert torch.equal(tokens, plain_tokens) and len(tokens.unique()) > 5
    torch.testing.assert_close(images, plain_images, rtol=1e-4, atol=1e-5)


def mixed(row: Row) -> tuple[list[int], int]:
    """Return how many positions each call of a Mamba layer is for, and the bytes of caches."""
    assert isinstance(row.subject, Combination) and row.subject.pipe.run.model is not None
    lengths: list[int] = []
    hooks = [
        part.register_forward_hook(lambda *args: lengths.append(args[2][0].shape[1]))
        for part in row.subject.pipe.run.model.modules()
        if isinstance(part, Mamba2)
    ]
    watch = Stopwatch()
    row.draw(watch)
    for hook in hooks:
        hook.remove()
    return lengths, watch.cached


@pytest.mark.parametrize("tiny_run", ["mvar"], indirect=True)
@pytest.mark.parametrize("cache", ["static", "dense"])
def test_without_states_mamba_runs_over_all_that_is_kept(
    make_row: MakeRow, tiny_run: Run, cache: str
) -> None:
    row = make_row(batch=3, cache=cache)
    # two layers, 6 rows, the tail of the convolution and the state, 4 bytes each
    assert mixed(row) == ([1, 1, 4, 4, 16, 16], 2 * 6 * (3 * (64 + 2 * 64) + 64 * 64) * 4)
    # two layers, 6 rows, 21 positions, width 32, 4 bytes each
    assert mixed(naive_row(row, tiny_run)) == ([1, 1, 5, 5, 21, 21], 2 * 6 * 21 * 32 * 4)


@pytest.mark.parametrize("tiny_run", ["mvar"], indirect=True)
def test_what_is_kept_can_be_cut_and_forgotten(tiny_run: Run) -> None:
    model = naive(tiny_run).model
    assert model is not None
    schedule, condition = tiny_run.recipe.schedule, Condition(torch.tensor([0, 1]))
    x = torch.randn(2, 21, 4, generator=torch.Generator().manual_seed(0))
    cache = model.new_cache()

    def read(group: int, rows: int = 2) -> Tensor:
        span = schedule[group : group + 1]
        labels = Condition(condition.labels[:rows])
        with torch.no_grad():
            h = model(x[:rows, span.positions], span, labels, cache)
        cache.advance(span)
        return h

    whole = [read(group) for group in range(3)]
    cache.rewind(1)
    assert torch.equal(read(1), whole[1])
    cache.narrow(1)
    torch.testing.assert_close(read(2, rows=1), whole[2][:1])
    cache.rewind(0)
    assert torch.equal(torch.cat([read(group) for group in range(3)], 1), torch.cat(whole, 1))
    cache.release()
    assert not any(memory.tensors() for memory in cache.layers)


@pytest.mark.parametrize("tiny_run", ["raster"], indirect=True)
def test_the_null_half_is_computed_to_the_end_in_a_room_for_everything(
    make_row: MakeRow, tiny_run: Run
) -> None:
    row = make_row(sampling=Sampling(guidance=(2.0, 2.0), guided_groups=5), batch=3)
    row = naive_row(row, tiny_run)
    assert isinstance(row.subject, Combination) and row.subject.pipe.run.model is not None
    rows: list[int] = []
    row.subject.pipe.run.model.model.model.blocks[0].mlp.register_forward_hook(
        lambda *args: rows.append(len(args[2]))
    )
    watch = Stopwatch()
    row.draw(watch)
    assert rows == [6] * 16
    # two layers, keys and values, 6 rows, 16 positions, width 32, 4 bytes each
    assert watch.cached == 2 * 2 * 6 * 16 * 32 * 4


def test_what_has_no_naive_way_is_refused(tiny_run: Run) -> None:
    alone = replace(tiny_run, model=None, recipe=replace(tiny_run.recipe, backbone=None))
    with pytest.raises(UserError, match="a naive row needs a generator"):
        naive(alone)
    assert naive_head(nn.Identity(), torch.float32) is None
