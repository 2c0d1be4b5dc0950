"""Fine-tuning of chosen layers, and by adapters."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.conftest import KEYED_RUNS, RUNS
from tests.training.words import TRAINER, forget, train
from var import store
from var.condition import Condition
from var.errors import UserError
from var.random import Rng
from var.store import Run
from var.training import lora
from var.training.tuning import tune

MAPS = ("*attention.*", "*mlp.*")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the precision and number of processes of the last test's run."""
    forget()


def adapted(model: nn.Module, **changes: Any) -> nn.Module:
    settings = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": MAPS, **changes}
    tune(model, adapters=settings)
    return model


def shaken(model: nn.Module) -> nn.Module:
    """Give the adapters of a model loud weights."""
    rng = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    return model


def predicted(family: tiny.Family, model: Any) -> Tensor:
    """Return what the loss makes of everything, head included, (B, L)."""
    length = model.schedule.starts[-1]
    x, tokens, span = family.shown(2, length), family.tokens(2, length), model.schedule[:]
    h = model(x, span, Condition(torch.tensor([0, 3])))
    return model.head.loss(h, tokens, span, Rng([0, 1])).detach()


@tiny.families
def test_fresh_adapters_change_no_bit(family: tiny.Family) -> None:
    model = family.model()
    before = predicted(family, model)
    assert torch.equal(predicted(family, adapted(model)), before)
    assert not torch.equal(predicted(family, shaken(model)), before)


@tiny.families
def test_merged_adapters_predict_the_same(family: tiny.Family) -> None:
    model = shaken(adapted(family.model()))
    merged = lora.merged(model)
    assert merged.state_dict().keys() == family.model().state_dict().keys()
    tiny.close(predicted(family, merged), predicted(family, model))
    assert any("lora" in name for name, _ in model.named_parameters()), "the model is as it was"


@tiny.families
def test_adapters_alone_make_a_model_of_the_old_one(family: tiny.Family, tmp_path: Path) -> None:
    model, again = shaken(adapted(family.model())), family.model()
    lora.save(model, tmp_path)
    lora.apply(again, tmp_path)
    assert torch.equal(predicted(family, again), predicted(family, lora.merged(model)))
    with pytest.raises(UserError, match="does not fit this model"):
        lora.apply(family.model(**family.larger), tmp_path)


def test_adapters_are_stored_as_peft_stores_them(tmp_path: Path) -> None:
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    lora.save(shaken(adapted(tiny.model(), rank=3)), tmp_path)
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha) == (3, 4.0)  # type: ignore[attr-defined]
    state = load_peft_weights(str(tmp_path))
    assert state["base_model.model.blocks.0.attention.qkv.lora_A.weight"].shape == (3, 32)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_only_adapters_and_chosen_layers_can_move() -> None:
    model = tiny.model()
    tune(model, layers=["stem.classes.*"], adapters={"rank": 2, "alpha": 1, "targets": ["*.qkv"]})
    moving = [name for name, p in model.named_parameters() if p.requires_grad]
    assert "stem.classes.weight" in moving and len(moving) == 5
    assert all("qkv.lora_" in name or "classes" in name for name in moving)


def test_a_modulation_gets_no_adapter() -> None:
    names = list(lora.maps(tiny.model()))
    assert "blocks.0.attention.qkv" in names and "head.linear" in names
    assert not [name for name in names if "modulation" in name]


DIGITS = ("data=digits", "data.train.size=8", "data.test.size=8", "tokenizer=trained", "name=new")


def begin(folder: Path, old: Run, *words: str) -> Run:
    """Train two steps from a run; return what comes of it: averages of weights, exported."""
    store.save(folder / "old", old)
    grid = old.recipe.schedule.grids[-1][0]
    place = f"schedule={{raster:{grid}}}" if old.recipe.schedule.is_raster else "schedule=[1,2,4]"
    paths = (f"init.run={folder / 'old'}", f"tokenizer.run={folder / 'old'}", "init.classes=grow")
    train(folder, *DIGITS, place, *TRAINER, *paths, "trainer.steps=2", *words)
    return store.load(folder / "new")


def moved(old: Run, new: Run) -> list[str]:
    """Return the names of weights that are not, to the last bit, as they were."""
    assert old.model is not None and new.model is not None
    theirs = new.model.state_dict()
    same = {k: v.shape == theirs[k].shape for k, v in old.model.state_dict().items()}
    return [
        k for k, v in old.model.state_dict().items() if same[k] and not torch.equal(v, theirs[k])
    ]


@RUNS
def test_only_chosen_layers_move(tiny_run: Run, tmp_path: Path) -> None:
    names = moved(tiny_run, begin(tmp_path, tiny_run, "tuning.layers=['*mlp.fall.*']"))
    assert names and all("mlp.fall." in name for name in names)


@KEYED_RUNS
def test_adapters_are_trained_merged_and_stored(tiny_run: Run, tmp_path: Path) -> None:
    words = ("tuning.lora.rank=2", "tuning.lora.targets=['*attention.proj']")
    new = begin(tmp_path, tiny_run, *words)
    names = moved(tiny_run, new)
    assert names and all(name.endswith("attention.proj.weight") for name in names)
    # The data brought classes: with them the old run and its adapters are the new run.
    again = begin(tmp_path / "again", tiny_run, "trainer.rate=0", "trainer.steps=1").model
    assert again is not None and new.model is not None
    lora.apply(again, tmp_path / "new" / "adapter")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in new.model.state_dict().items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tuning.layers=[blocks.*.ffn.*]",), r"tuning\.layers: blocks\.\*\.ffn\.\* matches noth"),
        (("tuning.layers=[block.0]",), r"there are blocks\.0\."),
        (("tuning.lora.rank=2", "tuning.lora.targets=[x]"), r"tuning\.lora\.targets: x matches"),
        (("tuning.lora.rank=0",), r"tuning\.lora\.rank=0"),
        (("tuning.lora.rank=2", "tuning.lora.dropout=1"), r"tuning\.lora\.dropout=1"),
        (
            ("tuning.lora.rank=2", "init.run=null", "init.classes=data", "experiment=digits-var"),
            r"name it by init\.run",
        ),
    ],
)
def test_bad_input_is_named(
    tiny_run: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        begin(tmp_path, tiny_run, *words)


def test_what_is_missing_for_adapters_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'var-toolkit\[lora\]'"):
        adapted(tiny.model())
