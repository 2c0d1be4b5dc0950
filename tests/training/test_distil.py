"""Distillation, fine-tuning on some groups, and the two recipes of CoDe."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra import compose, initialize_config_module
from safetensors.torch import load_file
from torch import Tensor

from tests import tiny
from tests.conftest import make_run
from var import store
from var.condition import Condition
from var.errors import UserError
from var.models.var import VAR
from var.random import Rng
from var.scripts.train import main
from var.store import Run
from var.tokenizers.multiscale import MultiScaleVQ
from var.training.distil import DistilTask, distance
from var.training.generator import GeneratorTask
from var.training.loss import loss

SCHEDULE = tiny.SCHEDULE


def logits(seed: int) -> Tensor:
    return torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed))


def test_a_student_that_agrees_has_nothing_to_learn() -> None:
    same = distance(logits(0), logits(0) + 3, temperature=2.0)
    torch.testing.assert_close(same, torch.zeros(3, 5), rtol=0, atol=1e-5)
    assert (distance(logits(0), logits(1)) > 0).all()


def test_the_distance_is_what_its_formula_says() -> None:
    ours, theirs, tokens = logits(0), logits(1), torch.arange(15).view(3, 5) % 7
    p, q = (theirs / 3).softmax(-1), (ours / 3).softmax(-1)
    taught = 9 * (p * (p / q).log()).sum(-1)
    right = -ours.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    mixed = distance(ours, theirs, tokens, temperature=3.0, alpha=0.25)
    torch.testing.assert_close(mixed, 0.25 * taught + 0.75 * right)
    with pytest.raises(ValueError, match="alpha=0.5 asks for the right tokens"):
        distance(ours, theirs, alpha=0.5)


def tokenizer() -> MultiScaleVQ:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 0, "groups": 4}
    return MultiScaleVQ(
        vocabulary=tiny.VOCABULARY, channels=tiny.CHANNELS, scales=len(SCHEDULE), **shape
    ).eval()


def batch() -> tuple[Tensor, Tensor, Rng]:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return image, torch.tensor([0, 1]), Rng([0, 1])


def distil(student: VAR, **changes: Any) -> DistilTask:
    settings: dict[str, Any] = {"steps": 5, "switch": 2, **changes}
    return DistilTask(
        backbone=student,
        teacher=tiny.model(depth=1),
        tokenizer=tokenizer(),
        schedule=SCHEDULE,
        sampler=lambda _: torch.zeros(1, 3, 8, 8),
        **settings,
    )


def reached(task: GeneratorTask) -> list[bool]:
    """Return which groups the gradient of a task's loss reaches."""
    features: list[Tensor] = []
    task.module.backbone.register_forward_hook(lambda _, __, h: features.append(h))  # type: ignore[union-attr]
    total = task.losses(task.module, *batch())["total"]
    (gradient,) = torch.autograd.grad(total, features[-1])
    parts = gradient.split(SCHEDULE.sizes[: task.span.stop], dim=1)
    return [bool(part.abs().sum() > 0) for part in parts]


def at(step: int, task: DistilTask) -> DistilTask:
    task.load_state_dict({"step": step})
    return task


def test_distillation_reaches_all_groups_first_and_only_its_own_last() -> None:
    assert reached(distil(tiny.model())) == [True] * 4
    assert reached(at(4, distil(tiny.model()))) == [False, False, True, True]
    assert reached(distil(tiny.model(), start=0)) == [False, False, True, True]
    assert reached(at(4, distil(tiny.model(), switch=None))) == [True] * 4


def test_the_weight_of_the_first_groups_falls_linearly_from_one_to_nothing() -> None:
    task, optimizer = distil(tiny.model()), torch.optim.SGD([torch.zeros(1)])
    weights = []
    for step in range(1, 6):
        weights.append(task.weight)
        task.stepped(step, optimizer, torch.Generator())
    assert weights == [1.0, 0.75, 0.5, 0.25, 0.0]
    again = distil(tiny.model())
    again.load_state_dict({**task.state_dict(), "step": 2})
    assert again.weight == 0.5


def test_the_loss_weighs_groups_by_their_positions() -> None:
    student = tiny.model()
    losses = at(2, distil(student)).losses(at(2, distil(student)).module, *batch())
    each = distil(student).module(
        tiny.model(depth=1), tokenizer(), SCHEDULE, batch()[0], Condition(batch()[1]), batch()[2]
    )
    weights = torch.tensor([0.5] * 5 + [1.0] * 25)
    torch.testing.assert_close(losses["total"], (each * weights).mean())
    torch.testing.assert_close(losses["unweighted"], each.mean())
    torch.testing.assert_close(losses["last_group"], each[:, -16:].mean())


def test_the_teacher_stays_as_it_is() -> None:
    task = distil(tiny.model())
    task.module.train()
    task.losses(task.module, *batch())["total"].backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert not task.teacher.training
    task.to(torch.device("meta"))
    assert next(task.teacher.parameters()).is_meta


def test_on_a_prefix_nothing_else_is_read_and_nothing_changes() -> None:
    model, (image, label, _) = tiny.model(), batch()
    whole = loss(model, tokenizer(), SCHEDULE, image, Condition(label), Rng([0, 1]))
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    part = loss(model, tokenizer(), SCHEDULE, image, Condition(label), Rng([0, 1]), groups=3)
    assert seen == [14]
    torch.testing.assert_close(part, whole[:, :14])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"switch": 4}, r"teacher\.switch=4: use 1\.\.3"),
        ({"switch": 0}, r"teacher\.switch=0"),
        ({"switch": 2, "groups": 2}, r"teacher\.switch=2: use 1\.\.1"),
        ({"groups": 5}, r"groups=5: an image has 1\.\.4"),
        ({"alpha": 1.5}, r"teacher\.alpha=1\.5"),
        ({"temperature": 0}, r"teacher\.temperature=0"),
    ],
)
def test_numbers_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distil(tiny.model(), **changes)


DATA = ["data=digits", "data.train.size=8", "data.test.size=8", "schedule=[1,2,4]", "switch=1"]
TRAINER = [
    "trainer.steps=4",
    "trainer.batch_size=8",
    "trainer.accumulation=2",
    "trainer.checkpoint_every=2",
    "trainer.precision=fp32",
    "trainer.cpu=true",
    "trainer.rate=1e-3",
]


def generator(depth: int, seed: int = 0, **changes: Any) -> Run:
    """Return a generator of ten classes on the tokenizer of the tiny run."""
    run = make_run(seed)
    spec = {**(run.recipe.backbone or {}), "classes": 10, "depth": depth, **changes}
    model = VAR(**{k: v for k, v in spec.items() if k != "_target_"})
    return Run(replace(run.recipe, backbone=spec), run.tokenizer, model.eval())


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a large and a small generator on one tokenizer."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    store.save(tmp_path / "large", generator(depth=2))
    store.save(tmp_path / "small", generator(depth=1))
    return tmp_path


def train(recipe: str, runs: Path, *overrides: str, where: str = "out") -> dict[str, Tensor]:
    """Train by the real configs; return the weights of the newest checkpoint."""
    start = "large" if recipe == "code-drafter" else "small"
    names = [f"init.run={runs / start}", f"runs={runs / where}"]
    names += [f"teacher.run={runs / 'large'}"] if recipe == "code-refiner" else []
    with initialize_config_module("var.configs", version_base="1.3"):
        words = [f"experiment={recipe}", *DATA, *TRAINER, *names, *overrides]
        main(compose("train", overrides=words))
    newest = sorted((runs / where / recipe / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


RECIPES = pytest.mark.parametrize("recipe", ["code-drafter", "code-refiner"])


@RECIPES
def test_a_recipe_begins_with_its_run_and_changes_it(recipe: str, runs: Path) -> None:
    start = store.load(runs / ("large" if recipe == "code-drafter" else "small")).model
    assert start is not None
    still = train(recipe, runs, "trainer.rate=0", "trainer.steps=1", where="still")
    for name, value in start.state_dict().items():
        assert torch.equal(still[f"backbone.{name}"], value)
    moved = train(recipe, runs)
    assert any(not torch.equal(moved[name], still[name]) for name in still)
    assert store.load(runs / "out" / recipe).recipe.schedule.sizes == (1, 4, 16)


@RECIPES
def test_a_recipe_resumes_to_the_last_bit(
    recipe: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = train(recipe, runs, where="full")
    train(recipe, runs, where="cut")
    last = runs / "cut" / recipe / "checkpoints" / "step-00000004"
    (last / "progress.json").unlink()
    last.rename(last.with_name(".gone"))
    again = train(recipe, runs, where="cut")
    assert full.keys() == again.keys()
    assert all(torch.equal(full[key], again[key]) for key in full)


def test_the_halves_work_together(runs: Path) -> None:
    import var

    train("code-drafter", runs)
    train("code-refiner", runs)
    pipe = var.load(runs / "out" / "code-drafter")
    choice = {"name": "collaborative", "closer": str(runs / "out/code-refiner"), "switch": 1}
    assert pipe([0, 9], decoding=choice).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("init.run=nowhere", "no model named nowhere"),
        ("teacher.run={other}", r"other .* another one \(codebook.weight differs\)"),
        ("init.run={wide}", "wide is another backbone: .* do not fit. Leave backbone out"),
        ("teacher.switch=3", r"teacher\.switch=3: use 1\.\.2"),
    ],
)
def test_a_run_that_does_not_fit_is_named(runs: Path, override: str, message: str) -> None:
    store.save(runs / "other", generator(depth=1, seed=5))
    store.save(runs / "wide", generator(depth=1, width=16))
    places = {name: runs / name for name in ("other", "wide")}
    words = [override.format(**places), f"tokenizer.run={runs / 'small'}"]
    if "wide" in override:
        words += ["backbone=var", "backbone.depth=1", "backbone.width=32", "backbone.heads=2"]
    with pytest.raises(UserError, match=message):
        train("code-refiner", runs, *words)
