"""The svd profile at full size with random weights: written in the hub's layout, imported, verified, loaded.

    PYTHONPATH=src:. python -m bench.full_size FOLDER

Shows that what `models pull svd` fetches fits the code that loads it, names and shapes, without the real
weights: about 18 GB of disk twice, 16 GB of memory, some minutes. Prints the parameters of each part.
"""

import argparse
import json
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from bench.rigs import full_networks, models
from stillmotion.engine.weights import load_weights
from stillmotion.models.folder import Flaw, import_from, verify
from stillmotion.profiles import load_profile
from stillmotion.types import Sampler
from tests.engine.tiny import svd_scheduler, tokenizer, write_hub_tokenizer

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection  # isort: skip

PROFILE = load_profile("svd")
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def save(network: Any, folder: Path, name: str, dtype: torch.dtype = torch.float16) -> None:
    """Write a network that lies on the meta device as random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: (torch.randn(value.shape) * 0.02).to(dtype) for key, value in network.state_dict().items()
    }
    save_file(tensors, folder / name)


def save_with_config(network: Any, folder: Path, stem: str) -> None:
    save(network, folder, f"{stem}.fp16.safetensors")
    if hasattr(network, "save_config"):
        network.save_config(folder)
    else:
        network.config.save_pretrained(folder)


def write_video(root: Path) -> None:
    with torch.device("meta"):
        unet, vae, clip = full_networks()
    base = root / PROFILE.sources[0].repository
    save_with_config(unet, base / "unet", "diffusion_pytorch_model")
    save_with_config(vae, base / "vae", "diffusion_pytorch_model")
    save_with_config(clip, base / "image_encoder", "model")
    svd_scheduler().save_pretrained(base / "scheduler")
    for name in ("model_index.json", "feature_extractor/preprocessor_config.json"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    turbo = PROFILE.sources[1]
    save(unet, root / turbo.repository, turbo.files[0], torch.float32)


def picture_networks() -> tuple[Any, Any, Any, Any]:
    """SDXL's UNet, autoencoder and two text encoders on the meta device."""
    with torch.device("meta"):
        unet = models.UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae = models.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            scaling_factor=0.13025,
        )
        small = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        large = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                projection_dim=1280,
            )
        )
    return unet, vae, small, large


def write_pictures(root: Path) -> None:
    base = root / PROFILE.sources[2].repository
    unet, vae, small, large = picture_networks()
    save_with_config(vae, base / "vae", "diffusion_pytorch_model")
    save_with_config(small, base / "text_encoder", "model")
    save_with_config(large, base / "text_encoder_2", "model")
    unet.save_config(base / "unet")
    save(unet, root / PROFILE.sources[3].repository, PROFILE.sources[3].files[0])
    words = tokenizer(77)
    for name in ("tokenizer", "tokenizer_2"):
        write_hub_tokenizer(words, base / name)
    models.EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(base / "scheduler")
    (base / "model_index.json").write_text(json.dumps(INDEX))


def parts(weights: Any) -> Iterator[tuple[str, Any]]:
    pipeline = weights.first_frame.pipeline
    yield "video UNet", weights.unets[Sampler.EULER]
    yield "few-step video UNet", weights.unets[Sampler.LCM]
    yield "video autoencoder", weights.codec.vae
    yield "image encoder", weights.clip
    yield "picture UNet", pipeline.unet
    yield "picture autoencoder", pipeline.vae
    yield "text encoders", torch.nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2])


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("folder", type=Path)
    root: Path = ask.parse_args().folder
    torch.manual_seed(0)
    write_video(root / "hub")
    write_pictures(root / "hub")
    target = root / "weights"
    import_from(PROFILE, target, root / "hub", print)
    shutil.rmtree(root / "hub")
    flaws = [told for told in verify(PROFILE, target) if isinstance(told, Flaw)]
    print(f"verified, {len(flaws)} flaws")
    begun = time.perf_counter()
    preset = PROFILE.memory_presets[0]
    weights = load_weights(PROFILE, target, torch.device("cpu"), torch.bfloat16, preset)
    print(f"loaded in {time.perf_counter() - begun:.1f} s")
    for name, network in parts(weights):
        print(f"{name}: {sum(parameter.numel() for parameter in network.parameters()):,} parameters")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"peak memory of writing and loading {peak:.1f} GiB")


if __name__ == "__main__":
    main()
