"""The prompt's picture: any diffusers text-to-image pipeline folder, asked as the profile says.

Its latents come from the film's own generator, so the seed decides the picture too. A pipeline without
an autoencoder draws in the film's latents, which the film's codec then decodes.
"""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from stillmotion import profiles
from stillmotion.engine.codec import Codec
from stillmotion.engine.loading import load_network, read_json
from stillmotion.engine.memory import Placement
from stillmotion.engine.pictures import cover, to_bytes
from stillmotion.engine.quiet import no_advice
from stillmotion.errors import InputRefused, WeightsMissing
from stillmotion.profiles import Part, Size, nearest_size
from stillmotion.reporting import Report
from stillmotion.types import Level

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # isort: skip
from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # isort: skip

WORD = re.compile(r"[^\W_]+")
#: What diffusers' `encode_prompt` answers, in order; SD the first two, SDXL all four.
EMBEDDINGS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


class FirstFrame:
    """A loaded text-to-image pipeline."""

    def __init__(
        self,
        pipeline: Any,
        ask: profiles.FirstFrame,
        codec: Codec,
        vocabulary: dict[str, dict[str, list[str]]],
    ) -> None:
        self.pipeline = pipeline
        self.ask = ask
        self.codec = codec
        self.vocabulary = vocabulary
        self.in_latents = ask.output == "latent"
        self.cell: int = codec.cell if self.in_latents else pipeline.vae_scale_factor
        self.channels: int = pipeline.unet.config["in_channels"]

    @property
    def parts(self) -> dict[Part, tuple[nn.Module, ...]]:
        modules = {name: m for name, m in self.pipeline.components.items() if isinstance(m, nn.Module)}
        text = tuple(module for name, module in modules.items() if name.startswith("text_encoder"))
        rest = tuple(m for m in modules.values() if m not in (*text, self.pipeline.unet))
        return {"text_encoder": text, "picture_unet": (self.pipeline.unet,), "picture_vae": rest}

    def draw(
        self, prompt: str, native: Size, generator: torch.Generator, report: Report, memory: Placement
    ) -> Tensor:
        """Draw the prompt at the native size, (1, 3, H, W) in [-1, 1]; one draw from the generator."""
        self._tell_what_is_known(prompt, report)
        size = nearest_size(*native, self.ask.sizes) if self.ask.sizes else native
        shape = (1, self.channels, size[1] // self.cell, size[0] // self.cell)
        drawn = self._run(prompt, size, torch.randn(shape, generator=generator), report, memory)
        if not bool(torch.isfinite(drawn).all()):
            raise not_finite("The first frame")
        if self.in_latents:
            with memory.present("vae_decoder"):
                return self.codec.decode(drawn.float()).clamp(-1, 1)
        pixels = to_bytes(drawn.float() * 2 - 1)[0].permute(1, 2, 0).contiguous().numpy()
        return cover(Image.fromarray(pixels), native)

    def _run(self, prompt: str, size: Size, noise: Tensor, report: Report, memory: Placement) -> Tensor:
        steps, pipeline = self.ask.steps, self.pipeline

        def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            report.progress("first frame", step + 1, steps)
            report.check_cancelled()
            if step + 1 == len(pipeline.scheduler.timesteps):
                unet_present.close()  # what follows is the autoencoder's
            return tensors

        with memory.present("text_encoder"), no_advice():
            told = pipeline.encode_prompt(
                prompt,
                device=pipeline.text_encoder.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=self.ask.guidance_scale > 1,
            )
        with ExitStack() as unet_present, memory.present("picture_vae"), no_advice():
            unet_present.enter_context(memory.present("picture_unet"))
            answer = pipeline(
                **dict(zip(EMBEDDINGS, told, strict=False)),
                width=size[0],
                height=size[1],
                num_inference_steps=steps,
                guidance_scale=self.ask.guidance_scale,
                latents=noise.to(pipeline.unet.device, pipeline.unet.dtype),
                output_type="latent" if self.in_latents else "pt",
                callback_on_step_end=after_step,
            )
        return answer.images

    def _tell_what_is_known(self, prompt: str, report: Report) -> None:
        if not self.vocabulary:
            return
        said = f" {' '.join(WORD.findall(prompt.lower()))} "
        for things in self.vocabulary.values():
            for words in things.values():
                if any(f" {word.lower()} " in said for word in words):
                    return
        known = "; ".join(f"{kind}: {', '.join(things)}" for kind, things in self.vocabulary.items())
        report.log(f"These weights know no word of this prompt. They know {known}.", Level.WARN)


def load_first_frame(
    weights: Path,
    ask: profiles.FirstFrame,
    codec: Codec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    variant: str,
) -> FirstFrame:
    """Load the pipeline folder, its UNet possibly from a bare file."""
    folder = weights / ask.folder
    read_json(folder / "model_index.json")
    unet = load_network(
        UNet2DConditionModel,
        folder / "unet",
        device=device,
        dtype=dtype,
        variant=variant,
        weights=folder / ask.unet if ask.unet else None,
    )
    pipelines: Any = DiffusionPipeline
    given: dict[str, Any] = {"unet": unet} | ({"vae": None} if ask.output == "latent" else {})
    try:
        with no_advice():
            pipeline = pipelines.from_pretrained(
                folder,
                local_files_only=True,
                dtype=dtype,
                variant=variant or None,
                use_safetensors=True,
                **given,
            )
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{folder} cannot be loaded: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    if ask.scheduler:
        pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, **ask.scheduler)
    return FirstFrame(pipeline.to(device), ask, codec, _read_vocabulary(weights, ask.vocabulary))


def _read_vocabulary(weights: Path, name: str) -> dict[str, dict[str, list[str]]]:
    if not name:
        return {}
    try:
        return json.loads((weights / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{weights / name} cannot be read as JSON: {error}.") from error


def not_finite(what: str) -> InputRefused:
    """The failure of a request whose numbers overflowed; it is ours, not the caller's."""
    return InputRefused(
        f"{what} came out as not-a-number and was not delivered. Try another seed or a smaller cond_aug; "
        "if it happens often, run the profile in bfloat16 or float32.",
        kind="internal_server_error",
        status=500,
    )
