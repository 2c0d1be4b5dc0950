"""Our models as a pipeline of the diffusers library: its way of calling, our images.

`DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)` finds
the class by the files that `var.diffusers_layout` writes. Imported by those who use it only:
diffusers is slow to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from var import choices, diffusers_layout, fast, hub
from var.bars import progress_bar
from var.condition import Condition
from var.diffusers_calls import (
    OUTPUTS,
    Generators,
    batches_of,
    check_choice,
    check_options,
    guidance_of,
    number_type,
    one_device,
    seeds_of,
    shown_as,
)
from var.diffusers_parts import VARScheduler, VARTokenizer, VARTransformer
from var.labels import Labels
from var.pipeline import Pipeline
from var.recipe import Recipe
from var.sampling import Settings
from var.store import Run
from var.tokenizers.tokenizer import Canvas

# Gets the pipeline, the number of a group from 0, that of all groups, and what it asked for; what
# it returns is of no effect.
Callback = Callable[[Any, int, int, dict[str, Any]], Any]
WATCHED = ("latents", "canvas")


class VARPipeline(DiffusionPipeline):
    """Images as `var.load(...)` makes them, bit for bit, called as diffusers has it.

    Args:
        tokenizer: tokens to pixels.
        transformer: the generator; None for a tokenizer alone, which makes no images.
        scheduler: groups, classes, recommended settings.

    >>> pipe = VARPipeline.from_pretrained("fashion-var")                   # doctest: +SKIP
    >>> pipe(["sneaker"], generator=0).images[0].save("sneaker.png")        # doctest: +SKIP
    """

    _optional_components = ["transformer"]  # noqa: RUF012 (diffusers asks for a list)

    def __init__(
        self,
        tokenizer: VARTokenizer,
        scheduler: VARScheduler,
        transformer: VARTransformer | None,  # with a default diffusers would take it for an option
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        self.card, self.interrupt = "", False
        self._native, self._parts = cast(Pipeline, None), ()

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the pipeline of a run, with its modules themselves."""
        plain, model = run.recipe.plain(), run.model
        pipe = cls(
            VARTokenizer.of(run.tokenizer, plain["tokenizer"]),
            VARScheduler(**diffusers_layout.settings(run)),
            model and VARTransformer.of(model, plain["backbone"]),
        )
        pipe.card = run.card
        return pipe

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        revision: str | None = None,
        files: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Return the pipeline of whatever `var.load` finds: a folder of either layout, or a name.

        Runs no code that comes with a model.

        Args:
            pretrained_model_name_or_path: what to look up, see `var.load`.
            torch_dtype, dtype: of the generator; float32 unless one is given.
            device_map: the device, cuda for example.
            revision: branch, tag or commit on the hub; a folder has none.
            files: see `var.load`.
            options: components that take the place of those that are there; and others of
                diffusers, if they ask for what is so anyway: `use_safetensors=True`.

        Raises:
            UserError: there is nothing of that name, or what is there is damaged; an option, number
                type or device is unknown.
        """
        parts = {key: options.pop(key) for key in diffusers_layout.COMPONENTS if key in options}
        check_options(options, "VARPipeline.from_pretrained")
        device, kind = one_device(device_map), number_type(dtype or torch_dtype)
        name = str(pretrained_model_name_or_path)
        if revision and not Path(name).exists():
            name += f"@{revision}"
        pipe = cls.of(hub.find(name, device=device, dtype=kind, files=files))
        pipe.register_modules(**parts)
        return pipe

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the generator."""
        return (self.transformer or self.tokenizer).dtype

    @property
    def run(self) -> Run:
        """Its components as a run."""
        settings: dict[str, Any] = {
            key: value for key, value in self.scheduler.config.items() if not key.startswith("_")
        }
        budget, parts = settings.pop("budget", None), {"tokenizer": self.tokenizer.config.spec}
        if self.transformer is not None:
            parts["backbone"] = self.transformer.config.spec
        found = Recipe.of({**settings, **parts}, "this pipeline")
        return Run(
            found,
            self.tokenizer.module,
            self.transformer and self.transformer.module,
            diffusers_layout.parse_budget(budget, "the scheduler's budget", found),
            self.card,
        )

    @property
    def native(self) -> Pipeline:
        """The same as a pipeline of ours, with all that it can do."""
        parts = (*self.components.values(), self.device, self.dtype)
        if parts != self._parts:  # the first time, or something was moved or replaced
            run = self.run
            fast.speed_up(run.model)
            self._native, self._parts = Pipeline(run), parts
        return self._native

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, **options: Any
    ) -> None:
        """Write the layout that `from_pretrained` reads, with a card; weights as safetensors.

        Args:
            save_directory: made if it is not there.
            options: those of diffusers, if they ask for what is so anyway.

        Raises:
            UserError: an option is unknown, the folder holds a run folder, or cannot be written.
        """
        check_options(options, "VARPipeline.save_pretrained")
        self.native.save(save_directory, layout="diffusers")

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, repo_id: str, *, private: bool = False, license: str | None = None
    ) -> str:
        """Upload that layout to `owner/name` on the hub; return its address.

        Raises:
            UserError: the hub refuses, or cannot be reached.
        """
        return self.native.push_to_hub(
            repo_id, private=private, license=license, layout="diffusers"
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | Condition = None,
        *,
        num_images_per_prompt: int = 1,
        guidance_scale: float | tuple[float, float] | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        decoding: choices.Choice = None,
        cache: choices.CacheChoice = None,
        edit: choices.EditChoice = None,
        batch_size: int = 32,
        **settings: Unpack[Settings],
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return images, labels x `num_images_per_prompt` of them, those of a label side by side.

        Args:
            class_labels: classes as ids or names, None and -1 for none; or a condition.
            num_images_per_prompt: images per label.
            guidance_scale: 1 is none, as everywhere in diffusers; two are those of the first and
                of the last group. By default what the model recommends. (`guidance=`, our own
                setting, may be given instead: see `Sampling`.)
            generator: what image i is drawn from: the random stream `seed + i`, where the seed is
                the number given, or the `initial_seed()` of the generator given, so that
                `torch.Generator().manual_seed(s)` makes the images of `var.load(...)(seed=s)`. A
                list has one for each image, and nothing is added. Generators are asked for their
                seed, and neither drawn from nor advanced. None: a seed from torch's own generator.
            output_type: pil; np, (B, H, W, 3), or pt, (B, 3, H, W), float32 in [0, 1]; latent, what
                would be decoded.
            return_dict: whether to return an object with `images`, or a tuple of them.
            callback_on_step_end: called after every group of every batch with this pipeline, the
                number of the group, counted from 0, that of all groups, and a dictionary of what
                it asks for. May set `pipe.interrupt = True`: images are left as they are.
            callback_on_step_end_tensor_inputs: `latents`, and `canvas`, see `Pipeline.decode`.
            decoding, cache, edit, batch_size, settings: see `var.pipeline.Pipeline`.

        Raises:
            UserError: see there; or an unknown `output_type`, or generators for other images.
        """
        check_choice("output_type", output_type, OUTPUTS)
        if guidance_scale is not None:
            settings["guidance"] = guidance_of(guidance_scale, settings)
        native, self.interrupt = self.native, False
        condition = native.condition(class_labels).each(max(0, num_images_per_prompt))
        seeds, made = seeds_of(generator, len(condition)), list[Tensor]()
        look = _looking(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        batches = batches_of(len(condition), batch_size)
        with self._bar(len(native.schedule) * len(batches)) as bar:
            for rows in batches:
                steps = native.steps(
                    condition[rows],
                    seed=seeds[rows],
                    decoding=decoding,
                    cache=cache,
                    edit=edit,
                    **settings,
                )
                canvas = self._watched(steps, look, bar)
                latent = output_type == "latent"
                made.append(canvas.latent if latent else native.decode(canvas, edit))
        images = shown_as(torch.cat(made), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _bar(self, total: int) -> Any:
        """Return a bar as `set_progress_bar_config` wants it, which stays out of log files."""
        how = dict(getattr(self, "_progress_bar_config", {}))
        return progress_bar(shown=not how.pop("disable", False), total=total, **how)

    def _watched(self, steps: Iterator[Canvas], look: Callable[[Canvas], Any], bar: Any) -> Canvas:
        """Return the last canvas, or that at which someone interrupts; move the bar meanwhile."""
        canvas, begun = cast(Canvas, None), bar.n
        for canvas in steps:
            look(canvas)
            bar.update(begun + canvas.done - bar.n)
            if self.interrupt:
                break
        return canvas


def _looking(
    pipe: VARPipeline, callback: Callback | None, asked: Sequence[str]
) -> Callable[[Canvas], Any]:
    """Return what is to be done with each canvas: to tell a callback of it, if there is one."""
    for name in asked:
        check_choice("callback_on_step_end_tensor_inputs", name, WATCHED)

    def look(canvas: Canvas) -> None:
        if callback is not None:
            shown = {"latents": canvas.latent, "canvas": canvas}
            wanted = {name: shown[name] for name in asked}
            callback(pipe, canvas.done - 1, len(canvas.schedule), wanted)

    return look
