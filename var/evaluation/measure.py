"""A measurement from beginning to end: parts made by all processes, a report by one."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

import var
from var.atomic import write
from var.devices import precision_name, share
from var.digests import fingerprint
from var.evaluation import npz
from var.evaluation.parts import Parts
from var.evaluation.reference import Reference
from var.evaluation.report import FORMAT, Report, beside, summary, table
from var.evaluation.scoring import rounded
from var.evaluation.subject import Subject
from var.metrics.networks import Network, identity
from var.pipeline import Pipeline
from var.published import Evaluation
from var.training.parallel import alone, chosen, together

_PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "accelerate")
_OPTIONAL = ("timm", "lpips")
_ORDER = 0  # seed of the order in which samples are written


class Measurement:
    """What is measured, in which folder.

    Args:
        subject: what is measured.
        network: who looks; None: nobody.
        out: folder of the parts and the report.
        model: name of what is measured.
        pipe: who makes it; None: it is there already.
        device: where it is measured.
        batch_size: images at a time.
        preset: name of the settings, for the report.

    Raises:
        UserError: the folder holds a measurement with other settings.
    """

    def __init__(
        self,
        subject: Subject,
        network: Network | None,
        out: Path,
        *,
        model: str,
        pipe: Pipeline | None,
        device: torch.device,
        batch_size: int,
        preset: str | None = None,
    ) -> None:
        self.subject, self.network, self.out, self.pipe = subject, network, out, pipe
        self.said = {
            "kind": subject.kind,
            "model": model,
            "weights": _weights(pipe) if pipe else None,
            "network": _told(network),
            "size": subject.size,
            **subject.settings(),
            "device": device.type,
            "compile": pipe.compile if pipe else None,
            "precision": precision_name(pipe.dtype) if pipe else None,
            "batch_size": batch_size,
        }
        self.preset, self.device = preset, device
        self.parts = Parts(out / "parts", self.said, subject.count, batch_size)

    def fill(self, bar: bool) -> None:
        """Make the parts that are missing, this process its share of them."""
        state, todo = PartialState(), list[int]()
        state.wait_for_everyone()  # whoever looks at the folder has seen it as it was
        alone(lambda: todo.extend(self.parts.missing(self.subject.needed)))
        todo = chosen(todo)
        mine = [todo[i] for i in share(len(todo), state.process_index, state.num_processes)]
        shown = bar and state.is_main_process
        together(self.parts.check)
        together(lambda: self.subject.fill(self.parts, mine, shown) if mine else None)

    def report(self, reference: Reference | None, *, draws: int) -> Report:
        """Return the report of a measurement whose parts are all made.

        Args:
            reference: real images; None: there is nothing to compare with.
            draws: of the bootstrap.

        Raises:
            UserError: parts are missing.
        """
        found = self.parts.collected(leave=("image",))
        scores = rounded(self.subject.scores(found, reference, draws))
        return {
            "format": FORMAT,
            **self.said,
            "reference": reference.plain() if reference else None,
            "images": len(found["label"]),
            "preset": self.preset,
            "draws": draws,
            "device": _device(self.device),
            "processes": PartialState().num_processes,
            "versions": _versions(),
            "metrics": scores,
            **self.subject.results(found, self.parts.notes()),
        }

    def write(self, report: Report, published: Evaluation | None, *, images: bool) -> None:
        """Write `report.json`, `report.md` and, if asked for, `samples.npz`.

        Raises:
            UserError: they cannot be written.
        """
        plain = json.dumps(report, indent=2, allow_nan=False)
        write(self.out / "report.json", plain + "\n")  # before anything else can fail
        write(self.out / "report.md", f"{text(report, published)}\n\n{table([report])}\n")
        if images:
            shape = (self.parts.count, self.subject.size, self.subject.size)
            npz.write(self.out / "samples.npz", shape, self._shuffled())

    def _shuffled(self) -> Iterator[Tensor]:
        """Yield the images in an order that does not go class by class.

        The evaluation suite that reads them takes the Inception Score of parts, as they come.
        """
        stream = torch.Generator().manual_seed(_ORDER)
        order = torch.randperm(self.parts.count, generator=stream).tolist()
        for number in order:
            yield self.parts.one(number, "image")


def text(report: Report, published: Evaluation | None) -> str:
    """Return a report as Markdown, with published figures beside it if there are some."""
    parts = [summary(report)]
    if published is not None:
        parts.append(beside(report, published))
    return "\n\n".join(parts)


def _weights(pipe: Pipeline) -> str:
    """Return a sha256 of the weights that images depend on, as loaded, companions' too."""
    both = (pipe.run.tokenizer, pipe.run.model)
    others = [other.run.model for other in pipe.companions.values()]
    every = [fingerprint(module) for module in (*both, *others) if module is not None]
    return hashlib.sha256("".join(every).encode()).hexdigest()


def _told(network: Network | None) -> dict[str, str] | None:
    if network is None:
        return None
    return {"name": network.name, "weights": identity(network)}


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _versions() -> dict[str, str]:
    found = {"var": var.__version__, **{name: version(name) for name in _PACKAGES}}
    found |= {name: version(name) for name in _OPTIONAL if name in sys.modules}
    return found | ({"cuda": str(torch.version.cuda)} if torch.cuda.is_available() else {})
