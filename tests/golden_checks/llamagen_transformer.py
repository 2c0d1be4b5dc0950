"""Checks of LlamaGen's transformer: teacher forcing, generation, training, angles, filters."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.golden_checks.case import Case
from tests.golden_checks.var_transformer import Observed, plain_logits, watch
from var import recipe
from var.condition import Condition
from var.decoding.loop import decide
from var.heads.base import Prediction
from var.heads.categorical import CategoricalPrediction
from var.models.raster import Raster
from var.nn.rotary import raster_turn, rotate
from var.nn.text import means, scores
from var.published import Parts
from var.random import Rng
from var.sampling import Sampling
from var.schedule import Schedule
from var.systems import llamagen_keys
from var.tokenizers.chain import Chain
from var.training.loss import loss


class Ids:
    """A tokenizer that is handed ids (B, N)."""

    any_schedule = True

    def blank(self, batch: int, schedule: Schedule) -> Chain:
        return Chain.blank(batch, schedule, lambda ids: ids[..., None], torch.device("cpu"))

    def encode(self, image: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        return list(image.split(1, dim=1))


def taller(parts: Parts) -> Raster:
    """Return the model on a raster of one more row: it reads the last token too."""
    (h, w), spec = parts.schedule.grids[0], dict(parts.model_spec)
    model = recipe.build({**spec, "grid": [h + 1, w]}, "a taller model", device="cpu")
    model.load_state_dict(parts.model.state_dict())
    return model.eval()


class Seen:
    """What a model of text or classes makes of a condition and all N tokens, row by row.

    Rows are those of the original: T of the condition, then N of the image.
    """

    def __init__(self, parts: Parts, condition: Condition, ids: Tensor) -> None:
        self.model, self.blocks, self.mixed = taller(parts), {}, []
        first = self.model.blocks[0]
        watch(first, self.blocks, "x", entering=True)
        for i, block in enumerate(self.model.blocks):
            watch(block, self.blocks, f"h{i}")
        first.attention.proj.register_forward_hook(lambda *args: self.mixed.append(args[-1]))
        first.register_forward_pre_hook(self.note)
        self.span = self.model.schedule[: ids.shape[1] + 1]
        x = torch.nn.functional.pad(ids, (1, 0))
        self.features = self.model(x, self.span, condition)

    def note(self, block: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.x, self.turn, *_, self.prefix = args

    def rows(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """Put rows of a text, if any, in the place of the one row that stands for them."""
        return x if prefix is None else torch.cat([prefix, x[:, 1:]], dim=1)

    def stream(self, name: str) -> Tensor:
        x, prefix = self.blocks[name]
        return self.rows(x, None if prefix is None else prefix.x)

    def tensors(self) -> dict[str, Tensor]:
        first, last = self.model.blocks[0], len(self.model.blocks) - 1
        text = None if self.prefix is None else self.prefix.x
        q, k, _ = first.before(self.x, self.turn)
        seen = {f"h{i}": self.stream(f"h{i}") for i in range(last + 1)}
        begin = self.rows(self.x, text)
        *of_text, of_image = self.mixed
        seen["cond_emb"] = self.x[:, :1] if text is None else text
        seen["attn_norm0"] = first.attention_norm(begin)
        seen["attn_out0"] = self.rows(of_image, of_text[0] if of_text else None)
        seen["q_rot0"] = self.heads(q) * q.shape[-1] ** 0.5
        seen["k_rot0"] = self.heads(k)
        table = torch.stack(self.turn, dim=-1)
        ahead = seen["cond_emb"].shape[1] - 1
        seen["freqs_cis"] = torch.cat([table[:1].expand(ahead, -1, -1), table])
        seen["logits"] = self.model.head.linear(self.model.norm(seen[f"h{last}"]))
        return seen

    def heads(self, x: Tensor) -> Tensor:
        """Return queries or keys (R, L, N, d); those of all features are those of the text."""
        x = x.transpose(1, 2)
        return self.rows(x, None if self.prefix is None else self.text_row(x))

    def text_row(self, x: Tensor) -> Tensor:
        return x[:, :1].expand(-1, self.prefix.x.shape[1], -1, -1)


@torch.no_grad()
def check_logits(case: Case) -> None:
    parts, ids = case.build(), case.inputs["idx"]
    if "cond" in case.inputs:
        condition = Condition(case.inputs["cond"])
    else:
        condition = Condition.of_text(case.inputs["caption_embs"], case.inputs["emb_mask"])
        case.expect("c_indices", condition.text)
        case.expect("left_mask", condition.valid.long())
        case.expect("attn_mask", visible(condition.valid.float(), ids.shape[1]))
    seen = Seen(parts, condition, ids).tensors()
    # By the model itself, which predicts nothing from the last token.
    canvas = Ids().blank(len(ids), parts.schedule).write(*Ids().encode(ids, parts.schedule))
    span, ahead = parts.schedule[:], seen["cond_emb"].shape[1] - 1
    h = parts.model(canvas.read(span), span, condition)
    seen["logits"][:, ahead:-1] = plain_logits(parts.model, h, span)
    for name, tensor in seen.items():
        case.expect(name, tensor)


def visible(valid: Tensor, length: int) -> Tensor:
    """Return who sees whom (R, T + N, T + N): features of a text (R, T), then the image."""
    rows, features = valid.shape
    each = torch.eye(features).expand(rows, 1, -1, -1)
    seen, whole = means(each, valid)
    bias = scores(valid, length + 1, length + 1, torch.float32)[:, 0, 1:]
    text = (whole[:, 0] > 0) & (bias[:, :, :1] > -torch.inf)
    image = torch.cat([text, bias[:, :, 1:] > -torch.inf], dim=-1)
    return torch.cat([torch.nn.functional.pad(seen > 0, (0, length)), image], dim=1)


class Drawing(Observed):
    """Observed decoding that draws by recorded uniform numbers (B, N), if there are any."""

    def __init__(self, model: Any, uniforms: Tensor | None) -> None:
        super().__init__(model)
        self.uniforms = uniforms

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        drawn = super().settle(prediction, rng)
        if self.uniforms is None:
            return drawn
        u = self.uniforms[:, None, len(self.tokens) - 1, None]
        self.tokens[-1] = (self.shaped[-1].probs.cumsum(dim=-1) <= u).sum(dim=-1)
        return self.tokens[-1:]


def generated(
    parts: Parts, condition: Condition, sampling: Sampling, uniforms: Tensor | None = None
) -> tuple[Drawing, Tensor]:
    """Generate; return what was observed, and the ids (B, N) on the canvas."""
    drawing = Drawing(parts.model, uniforms)
    *_, canvas = decide(Ids(), parts.schedule, condition, drawing, sampling)
    drawing.hook.remove()
    return drawing, canvas.ids.int()


def settings(temperature: float, top_k: int, top_p: float) -> dict[str, Any]:
    """Return the published filters as ours: no top-p is 1 there and 0 here."""
    top_p = 0.0 if top_p >= 1 else max(top_p, 1e-9)
    return {"temperature": max(temperature, 1e-5), "top_k": top_k, "top_p": top_p}


def check_generate(case: Case) -> None:
    parts, config, inputs = case.build(), case.config, case.inputs
    if "cond" in inputs:
        condition = Condition(inputs["cond"])
    else:
        label, valid = torch.zeros(len(inputs["c_indices"])).long(), inputs["left_mask"].bool()
        condition = Condition(label, inputs["c_indices"], valid)
    scale = config["cfg_scale"]
    guided = Sampling(guidance=(scale, scale) if scale > 1 else (1.0, 1.0))
    runs = {"nocfg": Sampling(guidance=(1.0, 1.0)), "cfg": guided}
    if "cfg_interval" in config and "ids_cfgint" in case.outputs:
        last = config["cfg_interval"]
        runs["cfgint"] = replace(guided, guided_groups=last + 2 if last > -1 else None)
    for name, sampling in runs.items():
        drawing, ids = generated(parts, condition, sampling)
        case.expect(f"ids_{name}", ids)
        case.expect(f"logits_{name}", torch.cat(drawing.guided, dim=1))
    sampling = replace(guided, **settings(**config["sampled"]))
    drawing, ids = generated(parts, condition, sampling, inputs["uniforms"])
    case.expect("ids_sampled", ids)
    case.expect("probs_sampled", torch.cat([each.probs for each in drawing.shaped], dim=1))


GRADIENTS = {
    "grad_tok_embeddings": "tok_embeddings.weight",
    "grad_wqkv0": "layers.0.attention.wqkv.weight",
    "grad_output": "output.weight",
    "grad_norm": "norm.weight",
    "grad_cls_table": "cls_embedding.embedding_table.weight",
    "grad_fc1": "cls_embedding.cap_proj.fc1.weight",
}


def check_train(case: Case) -> None:
    parts, inputs, ids = case.build(), case.inputs, case.inputs["idx"]
    model, schedule, span = parts.model.train(), parts.schedule, parts.schedule[:]
    if "cond" in inputs:
        condition, counted = Condition(inputs["cond"]), torch.ones(len(ids))
    else:
        features, counted = inputs["c_indices"], inputs["valid"].float()
        valid = inputs["attn_mask"][:, -1, : features.shape[1]]
        condition = Condition(torch.zeros(len(ids)).long(), features, valid)
    condition = condition.dropped(inputs["drop_draws"], case.config["class_dropout_prob"])
    each = loss(model, Ids(), schedule, ids, condition, Rng.batch(0, len(ids)))
    counted = counted[:, None].expand_as(each)
    total = (each * counted).sum() / counted.sum().clamp(min=1)
    total.backward()
    case.expect("loss", total)
    canvas = Ids().blank(len(ids), schedule).write(*Ids().encode(ids, schedule))
    case.expect("logits", plain_logits(model, model(canvas.read(span), span, condition), span))
    published = llamagen_keys.MODEL.publish({n: p.grad for n, p in model.named_parameters()})
    for name, key in GRADIENTS.items():
        if name in case.outputs:
            case.expect(name, published[key])


def check_angles(case: Case) -> None:
    """Compare tables named by grid side, channels, base and length of the condition."""
    tables: dict[str, tuple[Tensor, Tensor]] = {}
    for name in case.about["outputs"]:
        if found := re.fullmatch(r"g(\d+)_d(\d+)_b([\d.]+)_c(\d+)", name):
            side, channels, length = (int(found[i]) for i in (1, 2, 4))
            rows = [0] * (length - 1) + list(range(side * side + 1))
            cos, sin = raster_turn((side + 1, side), channels, float(found[3]), torch.device("cpu"))
            tables[name] = cos[rows], sin[rows]
            case.expect(name, torch.stack(tables[name], dim=-1))
    x = case.inputs["x"]
    cos, sin = next(iter(tables.values()))
    turned = rotate(x.transpose(1, 2), (cos[: x.shape[1]], sin[: x.shape[1]]))
    case.expect("rotated", turned.transpose(1, 2))


def check_filters(case: Case) -> None:
    logits = case.inputs["logits"]
    tied = torch.tensor([len(row.unique()) < len(row) for row in logits])
    prediction = CategoricalPrediction(logits[:, None])
    for i, combo in enumerate(case.config["combos"]):
        shaped = prediction.shaped(Sampling(**settings(**combo)))
        actual, expected = shaped.probs[:, 0], case.outputs[f"probs{i}"]
        if combo["top_p"] < 1:
            # Which of several equals stays depends on how they are sorted, how many does not.
            for rows in (actual, expected):
                rows[tied] = rows[tied].sort(dim=-1).values
        case.expect(f"probs{i}", actual)
