"""Tiny random weights of the real classes, saved in the hub's own layout.

`python -m tests.engine.tiny kl|cells FOLDER` writes one to look at.
"""

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

#: The classes' own annotations are narrower than what they take.
models: Any = diffusers
CROSS = 32
FRAMES = 4
VOCABULARY = {"objects": {"rocket": ["rocket", "space ship"]}, "colours": {"red": ["red"]}}

KL_PROFILE = f"""
name = "tiny-kl"
title = "Random weights in the layout of SVD"
licence = "none"
bundled = false
needs_cuda = false
variant = "fp16"
frames = {FRAMES}
decode_chunk_size = 3
threads = 1
native_sizes = []
warm_size = [64, 64]
condition_fps = {{ hq = 6, turbo = 7 }}
dtype = {{ cpu = "float32", cuda = "bfloat16" }}
codec = {{ unshuffle_in = 1, shuffle_out = 1, cell = 8 }}
samplers.lcm = {{ sigma_min = 0.002, sigma_max = 700, grid = 40 }}
samplers.euler = {{ steps = 2, sigma_min = 0.002, sigma_max = 700, guidance_min = 1.0, guidance_max = 3.0 }}
parts = {{ unet = "unet", turbo_unet = "turbo.safetensors", vae = "vae", image_encoder = "image_encoder" }}

[first_frame]
folder = "text_to_image"
unet = "lightning_unet.safetensors"
steps = 2
guidance_scale = 0
output = "image"
sizes = [[96, 64], [64, 64]]
scheduler = {{ timestep_spacing = "trailing" }}
"""

CELLS_PROFILE = f"""
name = "tiny-cells"
title = "Random weights with a folded autoencoder and a native size"
licence = "none"
bundled = false
needs_cuda = false
variant = ""
frames = {FRAMES}
decode_chunk_size = 3
threads = 1
native_sizes = [[128, 96], [96, 96], [96, 128]]
warm_size = [64, 64]
condition_fps = {{ hq = 6, turbo = 7 }}
dtype = {{ cpu = "float32", cuda = "bfloat16" }}
codec = {{ unshuffle_in = 8, shuffle_out = 8, cell = 32 }}
samplers.lcm = {{ sigma_min = 0.002, sigma_max = 700, grid = 40 }}
samplers.euler = {{ steps = 2, sigma_min = 0.002, sigma_max = 700, guidance_min = 1.0, guidance_max = 1.0 }}
parts = {{ unet = "unet", turbo_unet = "unet", vae = "vae", image_encoder = "image_encoder" }}

[first_frame]
folder = "text_to_image"
steps = 2
guidance_scale = 2.5
output = "latent"
vocabulary = "vocabulary.json"
"""


def film_unet(channels: int) -> Any:
    return models.UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=2 * channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=CROSS,
        num_attention_heads=(1, 2),
        num_frames=FRAMES,
    )


def clip_vision() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=37,
            projection_dim=CROSS,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=224,
            patch_size=32,
        )
    )


def svd_scheduler() -> Any:
    return models.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
    )


def tokenizer(length: int) -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["!", *letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], model_max_length=length
    )


def write_hub_tokenizer(words: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer as the hub's SDXL repository holds it: without today's tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": words.model_max_length, **special}
    (folder / "vocab.json").write_text(json.dumps(words.get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def text_config(words: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=CROSS,
        intermediate_size=37,
        projection_dim=CROSS,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def picture_unet(channels: int, **more: Any) -> Any:
    return models.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=4,
        **more,
    )


def write_kl(folder: Path) -> None:
    """SVD's layout: fp16 variant names, a bare turbo UNet, an SDXL folder with a bare UNet."""
    torch.manual_seed(1)
    film_unet(4).save_pretrained(folder / "unet", variant="fp16")
    save_file(film_unet(4).state_dict(), folder / "turbo.safetensors")
    models.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        sample_size=64,
    ).save_pretrained(folder / "vae", variant="fp16")
    clip_vision().save_pretrained(folder / "image_encoder", variant="fp16")
    svd_scheduler().save_pretrained(folder / "scheduler")
    words = tokenizer(77)
    unet = picture_unet(
        4,
        cross_attention_dim=2 * CROSS,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + CROSS,
    )
    models.StableDiffusionXLPipeline(
        vae=models.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            latent_channels=4,
            sample_size=64,
        ),
        text_encoder=CLIPTextModel(text_config(words)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(words)),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=models.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    ).save_pretrained(folder / "text_to_image", variant="fp16")
    for name in ("tokenizer", "tokenizer_2"):
        write_hub_tokenizer(words, folder / "text_to_image" / name)
    for file in (folder / "text_to_image" / "unet").glob("*.safetensors"):
        file.unlink()
    save_file(unet.state_dict(), folder / "text_to_image" / "lightning_unet.safetensors")


def write_cells(folder: Path) -> None:
    """A folded AutoencoderTiny and a text-to-image folder that answers in its latents."""
    torch.manual_seed(2)
    film_unet(16).save_pretrained(folder / "unet")
    models.AutoencoderTiny(
        in_channels=192,
        out_channels=192,
        encoder_block_out_channels=(64,) * 3,
        decoder_block_out_channels=(64,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=16,
        scaling_factor=2.0,
    ).save_pretrained(folder / "vae")
    clip_vision().save_pretrained(folder / "image_encoder")
    words = tokenizer(32)
    pictures = folder / "text_to_image"
    words.save_pretrained(pictures / "tokenizer")
    CLIPTextModel(text_config(words)).save_pretrained(pictures / "text_encoder")
    picture_unet(16, cross_attention_dim=CROSS).save_pretrained(pictures / "unet")
    models.EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=1.0,
        sigma_max=80.0,
    ).save_pretrained(pictures / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (pictures / "model_index.json").write_text(json.dumps(index))
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY))


if __name__ == "__main__":
    {"kl": write_kl, "cells": write_cells}[sys.argv[1]](Path(sys.argv[2]))
