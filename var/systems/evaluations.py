"""What is published of how good released checkpoints are, and how that was measured.

All of it is quoted, none of it measured here. Checkpoints recommend the settings that they were
measured with, so that `sampling` is theirs; demos of the same systems guide more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from var.systems import code, flowar, llamagen, mvar
from var.systems import var as var_system
from var.systems.base import Checkpoint, Evaluation, Score

# By side of the images, what comes with the evaluation suite of guided diffusion (ADM): its moments
# count. Reconstructions are of other images, and held against those.
ADM = {256: "VIRTUAL_imagenet256_labeled.npz", 512: "VIRTUAL_imagenet512.npz"}
VALIDATION = "ImageNet validation"

_PER_CLASS = 50

Scores = tuple[Score, ...]


def _said(source: str, **values: float) -> Scores:
    return tuple(Score(metric, value, source) for metric, value in values.items())


def _generator(checkpoint: Checkpoint, scores: Scores, **settings: Any) -> Evaluation:
    size = settings.pop("size", checkpoint.size)
    return Evaluation(
        scores=scores,
        reference=ADM[size],
        size=size,
        sampling=checkpoint.sampling,
        decoding=checkpoint.decoding,
        per_class=_PER_CLASS,
        **settings,
    )


_README, _CODE = "VAR README", "CoDe paper, table 1"
_QUOTED = "third-party table quoting the VAR paper"
_VAR: Mapping[str, Scores] = {
    "var-d16": (
        *_said(_README, FID=3.55),
        *_said(_QUOTED, IS=280.4),
        *_said("CoDe paper, measured again", FID=3.30, IS=277),
    ),
    "var-d20": (
        *_said(_README, FID=2.95),
        *_said(_QUOTED, FID=2.57, IS=302.6),
        *_said(_CODE, FID=2.61, IS=301, precision=0.83, recall=0.56),
    ),
    "var-d24": (
        *_said(_README, FID=2.33),
        *_said(_QUOTED, FID=2.09, IS=312.9),
        *_said(_CODE, FID=2.11, IS=311, precision=0.82, recall=0.59),
    ),
    "var-d30": (
        *_said(_README, FID=1.97),
        *_said(_QUOTED, FID=1.92, IS=323.1),
        *_said(_CODE, FID=1.95, IS=301, precision=0.81, recall=0.59),
    ),
    "var-d36-s": (*_said(_README, FID=2.63), *_said(_QUOTED, IS=303.2)),
}
_VAR_NOTES = (
    "the README gives guidance 1.5, top-k 900 and top-p 0.96, and not the precision: its demo runs "
    "under fp16 autocast with TF32",
    "where the paper's figures are lower than the README's they are said to be of other guidance "
    "for each model (VAR issues 86 and 156)",
    "images pass through PNG files to the evaluation suite of guided diffusion; with Inception of "
    "torchmetrics about 7 was found for d16 (VAR issue 38)",
)
_REJECTED = "the README's 1.80 for this checkpoint is with rejection sampling"

_CODE_SCORES: Mapping[int, Scores] = {
    9: _said(_CODE, FID=1.94, IS=296, precision=0.80, recall=0.61),
    8: _said(_CODE, FID=1.98, IS=302, precision=0.81, recall=0.60),
    7: _said(_CODE, FID=2.11, IS=303, precision=0.82, recall=0.59),
    6: _said(_CODE, FID=2.27, IS=297, precision=0.82, recall=0.58),
}
_CODE_NOTES = (
    "fp16 is autocast, with TF32",
    "one image at a time, the j-th one of each class with seed j, for both models",
)

# H and L: the README; the third party measured all three.
_XYZ = "table of the XYZFlow paper, measured again"
_FLOWAR: Mapping[str, tuple[Scores, str]] = {
    "flowar-s": (
        _said(_XYZ, FID=3.70, IS=235.1),
        "the README has guidance 4.3 and no FID, the released script guidance 4.2; those of the "
        "third party are not known",
    ),
    "flowar-l": (
        (*_said("FlowAR README", FID=1.90), *_said(_XYZ, FID=1.87, IS=273.1)),
        "the row of the third party was read from a damaged copy",
    ),
    "flowar-h": (
        (*_said("FlowAR README and paper", FID=1.65), *_said(_XYZ, FID=1.67, IS=276.3)),
        "the README has guidance 2.4, the released script 2.8",
    ),
}
_FLOWAR_NOTES = (
    "fp16 is autocast; the state of the solver is float64",
    "classes in order, measured by torch-fidelity against the statistics",
)

_LLAMAGEN = {
    "llamagen-b": 5.46,
    "llamagen-b-384": 6.09,
    "llamagen-l": 3.80,
    "llamagen-l-384": 3.07,
    "llamagen-xl": 2.62,
    "llamagen-xxl": 2.34,
    "llamagen-3b": 2.18,
}
_LLAMAGEN_NOTES = (
    "guidance is that of the Getting Started page; the released script has 1.5 as its default",
    "the precision is not known",
    "pixels are truncated: uint8 of 127.5 x + 128 for x in -1..1",
    "users did not reach these figures with other guidance, sizes or precisions (LlamaGen issues "
    "46, 48, 86 and 89)",
)

_MVAR_QUOTED = "third-party table quoting the M-VAR paper"
_MVAR: Mapping[str, Scores] = {
    "mvar-d12": _said(_MVAR_QUOTED, FID=4.19, IS=234.8, precision=0.83, recall=0.48),
    "mvar-d16": _said(_MVAR_QUOTED, FID=3.07, IS=294.6, precision=0.84, recall=0.53),
    "mvar-d20": _said(_MVAR_QUOTED, FID=2.41, IS=308.4, precision=0.85, recall=0.58),
    "mvar-d24": _said(_MVAR_QUOTED, FID=1.93, IS=320.7, precision=0.83, recall=0.59),
    "mvar-d32": (
        *_said("M-VAR README", FID=1.78),
        *_said(_MVAR_QUOTED, IS=331.2, precision=0.83, recall=0.61),
    ),
}
_MVAR_NOTES = (
    "the README gives guidance 1.5, top-k 900 and top-p 0.96, and not the precision: its demo runs "
    "under fp16 autocast",
)
_MVAR_DEPTH = "quoted as of 3.0B parameters, which is depth 30; the released script loads depth 32"

_TOKENIZERS: Mapping[str, tuple[Scores, tuple[str, ...]]] = {
    "var-vae": (
        _said("guided-diffusion issues 75 and 161", rFID=0.92),
        ("against the statistics of ADM, which are of other images, 2.70 was found (same issues)",),
    ),
    "llamagen-vq16": (
        _said("LlamaGen README", rFID=2.19),
        (
            "reconstructed at 384 pixels, measured at 256, it is 0.94; at 512 pixels 0.70 (README)",
            "against the statistics of ADM 4.28 was found (LlamaGen issues 34 and 48)",
        ),
    ),
    "llamagen-vq8": (_said("LlamaGen README", rFID=0.59), ()),
}


def _of_llamagen(name: str, fid: float) -> Evaluation:
    checkpoint = llamagen.CHECKPOINTS[name]
    resize = None if checkpoint.size == 256 else "bicubic, without antialiasing"
    return _generator(
        checkpoint,
        _said("LlamaGen README", FID=fid),
        size=256,
        resize=resize,
        notes=_LLAMAGEN_NOTES,
    )


def _of_var(name: str, scores: Scores) -> Evaluation:
    notes = (*_VAR_NOTES, _REJECTED) if name == "var-d30" else _VAR_NOTES
    return _generator(var_system.CHECKPOINTS[name], scores, notes=notes)


def _of_mvar(name: str, scores: Scores) -> Evaluation:
    notes = (*_MVAR_NOTES, _MVAR_DEPTH) if name == "mvar-d32" else _MVAR_NOTES
    return _generator(mvar.CHECKPOINTS[name], scores, notes=notes)


EVALUATIONS: Mapping[str, Evaluation] = {
    **{name: _of_var(name, scores) for name, scores in _VAR.items()},
    **{
        f"code-{n}": _generator(
            code.CHECKPOINTS[f"code-{n}"], scores, precision="fp16", notes=_CODE_NOTES
        )
        for n, scores in _CODE_SCORES.items()
    },
    **{
        name: _generator(
            flowar.CHECKPOINTS[name], scores, precision="fp16", notes=(*_FLOWAR_NOTES, note)
        )
        for name, (scores, note) in _FLOWAR.items()
    },
    **{name: _of_llamagen(name, fid) for name, fid in _LLAMAGEN.items()},
    **{name: _of_mvar(name, scores) for name, scores in _MVAR.items()},
    **{
        name: Evaluation(scores, VALIDATION, size=256, notes=notes)
        for name, (scores, notes) in _TOKENIZERS.items()
    },
}
