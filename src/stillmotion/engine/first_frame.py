"""The prompt's picture: any diffusers text-to-image pipeline folder, asked as the profile says.

All its noise comes from the film's own generator, so the seed decides the picture too. A pipeline without
an autoencoder draws in the film's latents, which the film's codec then decodes.
"""

import json
import re
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from stillmotion import profiles
from stillmotion.engine.codec import Codec
from stillmotion.engine.memory import Placement
from stillmotion.engine.pictures import cover, to_bytes
from stillmotion.engine.pipelines import load_pipeline, stages, takes
from stillmotion.engine.quiet import no_advice
from stillmotion.errors import InputRefused, WeightsMissing
from stillmotion.profiles import Part, Size, nearest_size
from stillmotion.reporting import Report
from stillmotion.types import Level

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # isort: skip

WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Bar:
    """What a pipeline takes for its progress bar."""

    update: Callable[[], None]


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
        self.parts: dict[Part, tuple[nn.Module, ...]] = stages(pipeline)

    def draw(
        self, prompt: str, native: Size, generator: torch.Generator, report: Report, memory: Placement
    ) -> Tensor:
        """Draw the prompt at the native size, (1, 3, H, W) in [-1, 1]; one draw from the generator."""
        self._tell_what_is_known(prompt, report)
        size = nearest_size(*native, self.ask.sizes) if self.ask.sizes else native
        try:
            drawn = self._run(prompt, size, generator, report, memory)
        except (TypeError, ValueError) as error:
            raise cannot_draw(type(self.pipeline).__name__, size, error) from error
        if not bool(torch.isfinite(drawn).all()):
            raise not_finite("The first frame")
        if self.in_latents:
            with memory.present("vae_decoder"):
                return self.codec.decode(drawn.float()).clamp(-1, 1)
        pixels = to_bytes(drawn * 2 - 1)[0].numpy()
        return cover(Image.fromarray(pixels), native)

    def _run(
        self, prompt: str, size: Size, generator: torch.Generator, report: Report, memory: Placement
    ) -> Tensor:
        pipeline = self.pipeline
        said: dict[str, Any] = {
            "prompt": prompt,
            "width": size[0],
            "height": size[1],
            "num_inference_steps": self.ask.steps,
            "guidance_scale": self.ask.guidance_scale,
            "generator": aside(generator),
            "latents": self._latents(size, generator),
            # Every pipeline answers NumPy pictures in [0, 1]; not all do tensors.
            "output_type": "latent" if self.in_latents else "np",
            **self.ask.arguments,
        }
        known = takes(type(pipeline)).keys()
        with ExitStack() as here, ExitStack() as developing, no_advice():
            here.enter_context(memory.present("text_encoder"))

            @contextmanager
            def denoising(iterable: None = None, total: int = 0) -> Generator[Bar]:
                here.close()  # the prompt is encoded
                developing.enter_context(memory.present("picture_vae"))
                here.enter_context(memory.present("picture_unet"))
                done = 0

                def step() -> None:
                    nonlocal done
                    done += 1
                    report.progress("first frame", done, total)
                    report.check_cancelled()
                    if done == total:
                        here.close()  # what follows is the autoencoder's

                yield Bar(step)

            pipeline.progress_bar = denoising
            # What rewrites a prompt samples its words from torch's own generator.
            torch.manual_seed(said["generator"].initial_seed())  # pyright: ignore[reportUnknownMemberType]
            answer = pipeline(**{name: value for name, value in said.items() if name in known})
        if any(getattr(answer, "nsfw_content_detected", None) or ()):
            raise blanked()
        return torch.as_tensor(answer[0])

    def _latents(self, size: Size, generator: torch.Generator) -> Tensor | None:
        """Noise in a UNet's latents; None for transformers, whose pipelines pack their own."""
        pipeline = self.pipeline
        unet = pipeline.components.get("unet")
        if not isinstance(unet, UNet2DConditionModel):
            return None
        cell = self.codec.cell if self.in_latents else pipeline.vae_scale_factor
        shape = (1, unet.config["in_channels"], size[1] // cell, size[0] // cell)
        return torch.randn(shape, generator=generator).to(unet.dtype)

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
    pipeline = load_pipeline(weights / ask.folder, ask, device=device, dtype=dtype, variant=variant)
    return FirstFrame(pipeline, ask, codec, _read_vocabulary(weights, ask.vocabulary))


def aside(generator: torch.Generator) -> torch.Generator:
    """A generator seeded with the next number of another, which stays where it is."""
    seed = torch.randint(1 << 32, (), generator=generator.clone_state())
    return torch.Generator("cpu").manual_seed(int(seed))


def _read_vocabulary(weights: Path, name: str) -> dict[str, dict[str, list[str]]]:
    if not name:
        return {}
    try:
        return json.loads((weights / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{weights / name} cannot be read as JSON: {error}.") from error


def cannot_draw(name: str, size: Size, error: Exception) -> InputRefused:
    """The failure of a pipeline that refuses what the profile asks it for."""
    return InputRefused(
        f"{name} cannot draw {size[0]}x{size[1]} as the profile's first_frame asks: {error}",
        kind="internal_server_error",
        status=500,
    )


def blanked() -> InputRefused:
    """The failure of a prompt for which Stable Diffusion's own checker returns a black picture."""
    return InputRefused(
        "The first frame's safety checker found the picture unsafe and made it black. Try another prompt "
        "or seed; weights without `safety_checker` in their model_index.json draw unchecked.",
        kind="content_policy_violation",
        field="prompt",
    )


def not_finite(what: str) -> InputRefused:
    """The failure of a request whose numbers overflowed; it is ours, not the caller's."""
    return InputRefused(
        f"{what} came out as not-a-number and was not delivered. Try another seed or a smaller cond_aug; "
        "if it happens often, run the profile in bfloat16 or float32.",
        kind="internal_server_error",
        status=500,
    )
