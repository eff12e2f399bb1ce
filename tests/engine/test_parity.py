"""Our loop beside diffusers' own pipeline, on the same weights, picture and noise."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.engine import Engine
from stillmotion.engine.codec import Codec
from stillmotion.engine.film import condition_on, sample_euler
from stillmotion.engine.pictures import clip_pixels, cover
from stillmotion.engine.quiet import no_advice
from stillmotion.engine.writing import decoded_chunks
from stillmotion.profiles import EulerSampler
from stillmotion.types import Sampler
from tests.engine.conftest import Notebook

SIZE = (64, 32)
STEPS = 3


def gradient() -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    return Image.fromarray(np.stack((x, y, 255 - x), -1).astype(np.uint8))


def stock_frames(engine: Engine, folder: Path, guidance: tuple[float, float]) -> torch.Tensor:
    with no_advice():
        import diffusers
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        models: Any = diffusers  # its annotations are narrower than what it takes
        pipeline = models.StableVideoDiffusionPipeline(
            vae=engine.weights.codec.vae,
            image_encoder=engine.weights.clip,
            unet=models.UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet", variant="fp16"),
            scheduler=models.EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
            feature_extractor=CLIPImageProcessorPil(size=224, crop_size=224),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            gradient(),
            height=SIZE[1],
            width=SIZE[0],
            num_frames=engine.profile.frames,
            num_inference_steps=STEPS,
            min_guidance_scale=guidance[0],
            max_guidance_scale=guidance[1],
            fps=6,
            motion_bucket_id=90,
            noise_aug_strength=0.1,
            decode_chunk_size=engine.profile.decode_chunk_size,
            generator=torch.Generator().manual_seed(11),
            output_type="pt",
        ).frames[0]


def our_frames(engine: Engine, guidance: tuple[float, float]) -> torch.Tensor:
    numbers = EulerSampler(
        steps=STEPS, sigma_min=0.002, sigma_max=700, guidance_min=guidance[0], guidance_max=guidance[1]
    )
    generator = torch.Generator().manual_seed(11)
    weights = engine.weights
    condition = condition_on(
        cover(gradient(), SIZE),
        clip=weights.clip,
        codec=weights.codec,
        frames=engine.profile.frames,
        fps=6,
        motion_bucket_id=90,
        cond_aug=0.1,
        generator=generator,
    )
    *_, latents = sample_euler(weights.unets[Sampler.EULER], condition, numbers, STEPS, generator)
    parts = latents[0].split(engine.profile.decode_chunk_size)
    return torch.cat([weights.codec.decode(part) for part in parts]).div(2).add(0.5).clamp(0, 1)


@pytest.mark.parametrize("guidance", [(1.0, 3.0), (1.5, 3.0), (1.0, 1.0)])
def test_euler_frames_equal_those_of_the_stock_pipeline(
    kl_engine: Engine, kl_folder: Path, guidance: tuple[float, float]
) -> None:
    with torch.inference_mode():
        stock = stock_frames(kl_engine, kl_folder, guidance)
        ours = our_frames(kl_engine, guidance)
    assert stock.std() > 0.01
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1024, 576), (300, 500), (64, 32), (224, 224)])
def test_clip_sees_what_the_stock_pipeline_shows_it(size: tuple[int, int]) -> None:
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
        _resize_with_antialiasing,
    )

    picture = torch.rand(1, 3, size[1], size[0], generator=torch.Generator().manual_seed(1)) * 2 - 1
    shown = clip_pixels(picture)
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
    deviation = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)
    stock = ((_resize_with_antialiasing(picture, (224, 224)) + 1) / 2 - mean) / deviation
    torch.testing.assert_close(shown, stock, atol=1e-4, rtol=0)


def test_frames_that_overflow_half_precision_are_decoded_in_float32(kl_engine: Engine) -> None:
    vae = copy.deepcopy(kl_engine.weights.codec.vae)
    # Weights that float16 holds, whose sums it does not.
    vae.decoder.conv_in.weight.mul_(1e4)
    vae.decoder.half().float()
    folding = kl_engine.profile.codec
    half = Codec(copy.deepcopy(vae), folding, torch.float16)
    single = Codec(vae, folding, torch.float32)
    latents = torch.randn(1, 4, 4, 4, 8, generator=torch.Generator().manual_seed(2)) * 100
    notes = Notebook()
    with torch.inference_mode():
        assert not torch.isfinite(half.decode(latents[0, :3])).all()
        frames = torch.cat(list(decoded_chunks(half, latents, 3, notes))).int()
        exact = torch.cat(list(decoded_chunks(single, latents, 3))).int()
    assert (frames - exact).abs().max() <= 1
    assert [line for _, line in notes.lines] == [
        "frames 1 to 3 overflowed, decoding them in float32",
        "frames 4 to 4 overflowed, decoding them in float32",
    ]
    assert {weight.dtype for weight in half.vae.decoder.parameters()} == {torch.float16}


def test_a_decoder_that_cannot_be_widened_keeps_its_number_format(
    kl_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(copy.deepcopy(kl_engine.weights.codec.vae), kl_engine.profile.codec, torch.float16)
    last, tries = codec.vae.decoder.time_conv_out, list[int]()
    convert = last._apply

    def fill(*asked: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return convert(*asked)

    monkeypatch.setattr(last, "_apply", fill)
    with pytest.raises(torch.OutOfMemoryError):
        codec.decode_in_float32(torch.zeros(1, 4, 4, 8))
    assert {weight.dtype for weight in codec.vae.decoder.parameters()} == {torch.float16}


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_decoding_refuses_what_is_or_becomes_no_number(kl_engine: Engine, value: float) -> None:
    from stillmotion.errors import InputRefused

    latents = torch.zeros(1, 4, 4, 4, 8)
    latents[0, 2, 0, 0, 0] = value
    with pytest.raises(InputRefused) as refused:
        next(decoded_chunks(kl_engine.weights.codec, latents, 3))
    assert refused.value.failure.status == 500
    assert "not-a-number" in refused.value.failure.message
