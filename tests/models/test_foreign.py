import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from var.errors import UserError
from var.models.foreign import Key, KeyTable, inside
from var.systems import var_keys

TABLE = KeyTable(
    keys=(
        Key("layers.{i}.table", "blocks.{i}.table", "1 p d -> p d"),
        Key("layers.{i}.{rest}", "blocks.{i}.inner.{rest}"),
        Key("gain", "gain"),
    ),
    derived=("mask", "layers.{i}.zeros"),
)


class Target(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(2))
        self.blocks = nn.ModuleList(nn.Module() for _ in range(11))
        for block in self.blocks:
            block.inner = nn.Linear(2, 3)
            block.table = nn.Parameter(torch.zeros(4, 2))


def published() -> dict[str, Tensor]:
    state: dict[str, Tensor] = {"gain": torch.randn(2), "mask": torch.zeros(7)}
    for i in range(11):
        state[f"layers.{i}.table"] = torch.randn(1, 4, 2)
        state[f"layers.{i}.weight"] = torch.randn(3, 2)
        state[f"layers.{i}.bias"] = torch.randn(3)
        state[f"layers.{i}.zeros"] = torch.zeros(1)
    return state


def test_a_state_is_loaded_under_our_names_and_shapes() -> None:
    module, state = Target(), published()
    TABLE.load(module, state, "it")
    assert torch.equal(module.blocks[10].inner.weight, state["layers.10.weight"])
    assert torch.equal(module.blocks[3].table, state["layers.3.table"][0])
    assert torch.equal(module.gain, state["gain"])


def test_a_module_without_memory_takes_the_tensors_over() -> None:
    with torch.device("meta"):
        module = Target()
    state = published()
    TABLE.load(module, state, "it")
    assert module.gain.data_ptr() == state["gain"].data_ptr()
    assert module.gain.requires_grad


def test_a_loaded_state_is_published_again_as_it_was() -> None:
    module, state = Target(), published()
    TABLE.load(module, state, "it")
    again = TABLE.publish(module.state_dict())
    assert again.keys() == {key for key in state if "zeros" not in key and key != "mask"}
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.items())


def test_errors_list_the_published_keys_and_shapes() -> None:
    state = published()
    del state["layers.2.bias"]
    state["layers.5.table"] = torch.zeros(1, 4, 3)
    state["extra"] = state["layers.11.weight"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        TABLE.load(Target(), state, "the state of it")
    assert str(caught.value) == (
        "the state of it does not fit its configuration: 1 missing: layers.2.bias; "
        "2 unexpected: extra, layers.11.weight; "
        "1 of another shape: layers.5.table (1, 4, 3) instead of (1, 4, 2)"
    )


def test_long_lists_are_cut() -> None:
    with pytest.raises(UserError, match=r"34 missing: gain, .* and 24 more$"):
        TABLE.load(Target(), {}, "it")


def test_a_failed_load_changes_nothing() -> None:
    module, state = Target(), published()
    del state["gain"]
    with pytest.raises(UserError):
        TABLE.load(module, state, "it")
    assert (module.blocks[0].table == 0).all()


JOINED = KeyTable(
    keys=inside(
        "blocks.{i}",
        "layers.{i}",
        (
            Key(("q.weight", "k.weight", "v.weight"), "qkv.weight", "o i 1 -> o i"),
            Key(("q.{rest}", "k.{rest}", "v.{rest}"), "qkv.{rest}"),
            Key("out.{rest}", "proj.{rest}"),
        ),
    )
)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.qkv, layer.proj = nn.Linear(4, 6), nn.Linear(2, 3)


def shares() -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for i in range(2):
        for name in "vkq":  # not in the order in which they are joined
            state[f"blocks.{i}.{name}.weight"] = torch.randn(2, 4, 1)
            state[f"blocks.{i}.{name}.bias"] = torch.randn(2)
        state[f"blocks.{i}.out.weight"] = torch.randn(3, 2)
        state[f"blocks.{i}.out.bias"] = torch.randn(3)
    return state


def test_several_published_tensors_become_one_of_ours_in_the_order_of_the_line() -> None:
    module, state = Fused(), shares()
    JOINED.load(module, state, "it")
    q, k, v = (state[f"blocks.1.{name}.weight"][..., 0] for name in "qkv")
    assert torch.equal(module.layers[1].qkv.weight, torch.cat([q, k, v]))
    assert torch.equal(module.layers[0].qkv.bias[2:4], state["blocks.0.k.bias"])
    assert torch.equal(module.layers[0].proj.weight, state["blocks.0.out.weight"])


def test_what_was_joined_is_published_again_as_it_was() -> None:
    module, state = Fused(), shares()
    JOINED.load(module, state, "it")
    again = JOINED.publish(module.state_dict())
    assert again.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.items())


def test_errors_name_the_share_that_is_missing_or_of_another_shape() -> None:
    state = shares()
    del state["blocks.0.k.bias"]
    state["blocks.1.v.weight"] = torch.zeros(1, 4, 1)
    with pytest.raises(UserError) as caught:
        JOINED.load(Fused(), state, "the state of it")
    assert str(caught.value) == (
        "the state of it does not fit its configuration: 1 missing: blocks.0.k.bias; "
        "1 of another shape: blocks.1.v.weight (1, 4, 1) instead of (2, 4, 1)"
    )
    with pytest.raises(KeyError, match=r"blocks\.0\.k\.bias .* layers\.0\.qkv\.bias"):
        JOINED.adopt(state)


@pytest.mark.parametrize("changes", [{}, {"l2_norm": False}, {"shared_adaln": True}])
def test_the_table_of_var_covers_every_variant_both_ways(changes: dict) -> None:
    model, copy = tiny.model(**changes), tiny.model(**changes)
    tiny.shaken(copy, scale=1.0, seed=9)
    state = var_keys.publish(model)
    assert state["attn_bias_for_masking"].shape == (1, 1, 30, 30)
    assert state["attn_bias_for_masking"].isinf().sum() == 30 * 30 - (1 + 20 + 9 * 14 + 16 * 30)
    assert state["lvl_1L"].tolist() == [[0] + [1] * 4 + [2] * 9 + [3] * 16]
    var_keys.MODEL.load(copy, state, "it")
    ours = copy.state_dict()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in model.state_dict().items())
