"""Subject-driven fine-tuning: a thing of few images, and a class that is not forgotten."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import tiny
from tests.conftest import make_run
from tests.training.words import TRAINER, forget, train
from var import store
from var.condition import Condition
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.random import Rng
from var.sampling import Sampling
from var.training.subject import SubjectTask
from var.training.tuning import tune


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the precision and number of processes of the last test's run."""
    forget()


FAMILIES = pytest.mark.parametrize("family", ["var", "mvar", "raster"])
IMAGE, LABEL = (
    torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
    torch.tensor([2, 2]),
)


def subject(family: str = "var", **changes: Any) -> SubjectTask:
    """Return the task of learning the third class without forgetting the first one."""
    run = make_run(family=family)
    assert run.model is not None
    sampling = Sampling(top_k=900, top_p=0.97)

    def draw(model: Any, condition: Condition, rng: Rng) -> Any:
        place = (run.tokenizer, run.recipe.schedule, condition, Sequential(model), sampling, rng)
        *_, canvas = decide(*place)  # type: ignore[arg-type]
        return canvas

    settings: dict[str, Any] = {"drop_label": 0.0, "prior": 0, "draw": draw, **changes}
    return SubjectTask(
        backbone=run.model,
        teacher=deepcopy(run.model),
        tokenizer=run.tokenizer.requires_grad_(False),  # type: ignore[arg-type]
        schedule=run.recipe.schedule,
        sampler=lambda _: IMAGE,
        **settings,
    )


def losses(task: SubjectTask, seed: int = 0) -> dict[str, Tensor]:
    return task.losses(task.module.train(), IMAGE, LABEL, Rng.batch(seed, 2))


@FAMILIES
def test_at_first_there_is_nothing_to_forget_and_after_a_step_there_is(family: str) -> None:
    task = subject(family)
    tune(task.module.backbone, layers=["*mlp.*"])  # type: ignore[arg-type]
    before = deepcopy(task.module.state_dict())
    first = losses(task)
    assert first["prior"] == 0 and first["total"] == first["subject"] > 0
    first["total"].backward()
    torch.optim.SGD([p for p in task.module.parameters() if p.requires_grad], lr=1.0).step()
    after = task.module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("mlp." in name for name in moved)
    assert losses(task)["prior"] > 0
    assert not any(p.requires_grad or p.grad is not None for p in task.teacher.parameters())


def changed(**changes: Any) -> SubjectTask:
    """Return a task whose student has learned something else than its teacher."""
    task = subject(**changes)
    tiny.shaken(task.module.backbone, scale=0.25, seed=7)  # type: ignore[arg-type]
    return task


def test_the_loss_is_what_its_formula_says() -> None:
    whole = losses(changed(weight=0.0))
    assert whole["total"] == whole["subject"]
    both = losses(changed(weight=0.25))
    torch.testing.assert_close(both["total"], whole["subject"] + 0.25 * both["prior"])
    # Of 21 tokens, those of the finest 16 count for nothing.
    coarse = losses(changed(weight=0.0, first=2, rest=0.0))["total"]
    part = losses(changed(weight=0.0, groups=2))["subject"]
    torch.testing.assert_close(coarse * 21, part * 5)


def test_a_hard_teacher_names_its_likeliest_code() -> None:
    soft, hard = losses(changed())["prior"], losses(changed(hard=True))["prior"]
    assert hard != soft and losses(subject(hard=True))["prior"] > 0


def test_what_is_drawn_of_the_class_depends_on_the_streams_alone() -> None:
    task = changed()
    assert losses(task)["prior"] == losses(task)["prior"] != losses(task, seed=9)["prior"]
    task.to(torch.device("meta"))
    assert next(task.teacher.parameters()).is_meta


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 0}, r"subject\.first=0: use 1\.\.3"),
        ({"first": 4}, r"subject\.first=4"),
        ({"weight": -1}, r"subject\.weight=-1"),
        ({"rest": -1}, r"subject\.rest=-1"),
    ],
)
def test_numbers_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        subject(**changes)


def learn(folder: Path, *words: str, family: str = "var") -> store.Run:
    """Train two steps of the recipe on four images of one thing; return what comes of it."""
    store.save(folder / "old", make_run(family=family))
    (folder / "images" / "my cat").mkdir(parents=True)
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "my cat" / f"{i}.png")
    paths = (f"data.root={folder / 'images'}", f"init.run={folder / 'old'}", f"runs={folder}")
    sizes = ("data.size=8", "schedule=[1,2,4]", "trainer.batch_size=4", "trainer.steps=2")
    names = ("name=new", "init.like=cat", "subject.prior=cat", "subject.first=2")
    train(folder, "experiment=fashion-subject", *TRAINER, *paths, *sizes, *names, *words)
    return store.load(folder / "new")


def test_the_recipe_adds_a_class_and_moves_what_it_names(tmp_path: Path) -> None:
    new, old = learn(tmp_path), make_run()
    assert new.recipe.data.classes == (*old.recipe.data.classes, "my cat")
    assert new.model is not None and old.model is not None
    after = new.model.state_dict()
    table = "stem.classes.weight"
    assert torch.equal(after[table][1:3], old.model.state_dict()[table][1:3])
    assert not torch.equal(after[table][3], old.model.state_dict()[table][0])
    for name, value in old.model.state_dict().items():
        if "attention" in name or name.startswith("head"):
            assert torch.equal(after[name], value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("subject.prior=cow",), "unknown class 'cow'"),
        (("init.classes=data",), "subject.prior is a class of the run to begin with"),
        (("subject.sampling.top_k=-1",), "subject.sampling: top_k"),
    ],
)
def test_a_recipe_that_does_not_fit_is_named(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        learn(tmp_path, *words)


def test_a_model_without_codes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compares distributions over codes"):
        learn(tmp_path, "tuning.layers=null", family="flowar")
