"""Tiny random text-to-image pipelines of the classes people name, saved in the hub's own layout.

`python -m tests.engine.tiny_pictures NAME FOLDER` writes one to look at; PIPELINES has the names.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from stillmotion.engine.quiet import no_advice
from tests.engine.tiny import CROSS, picture_unet, text_config, tokenizer

#: The classes' own annotations are narrower than what they take.
models: Any = diffusers
towers: Any = transformers
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 32


def clip(kind: Any) -> Any:
    return kind(text_config(tokenizer(77)))


def t5_words() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return towers.T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


def t5() -> Any:
    told = towers.T5Config(
        vocab_size=len(t5_words()), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return towers.T5EncoderModel(told)


def gemma_words() -> Any:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    return towers.GemmaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])


def small_decoder(name: str, words: int, **more: Any) -> Any:
    """A language model without its head; narrow, for SANA tells it a page of instructions."""
    told = getattr(towers, f"{name}Config")(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=37,
        head_dim=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        **more,
    )
    return getattr(towers, f"{name}Model")(told)


def autoencoder(latents: int, **more: Any) -> Any:
    return models.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=latents,
        sample_size=64,
        **more,
    )


def flow(**more: Any) -> Any:
    return models.FlowMatchEulerDiscreteScheduler(**more)


def checked() -> Any:
    """Stable Diffusion 1, whose safety checker lets every picture pass."""
    seen = towers.CLIPVisionConfig(hidden_size=36, intermediate_size=37, num_hidden_layers=1, patch_size=32)
    checker: Any = import_module("diffusers.pipelines.stable_diffusion.safety_checker")
    return models.StableDiffusionPipeline(
        vae=autoencoder(4),
        text_encoder=clip(towers.CLIPTextModel),
        tokenizer=tokenizer(77),
        unet=picture_unet(4, cross_attention_dim=CROSS),
        scheduler=models.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
        safety_checker=checker.StableDiffusionSafetyChecker(
            towers.CLIPConfig(text_config={}, vision_config=seen.to_dict(), projection_dim=CROSS)
        ),
        feature_extractor=towers.CLIPImageProcessor(),
    )


def flux() -> Any:
    return models.FluxPipeline(
        scheduler=flow(),
        vae=autoencoder(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=clip(transformers.CLIPTextModel),
        tokenizer=tokenizer(77),
        text_encoder_2=t5(),
        tokenizer_2=t5_words(),
        transformer=models.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
    )


def sd3() -> Any:
    return models.StableDiffusion3Pipeline(
        transformer=models.SD3Transformer2DModel(
            sample_size=32,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * WIDTH,
        ),
        scheduler=flow(shift=3.0),
        vae=autoencoder(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=clip(transformers.CLIPTextModelWithProjection),
        tokenizer=tokenizer(77),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(77),
        text_encoder_3=t5(),
        tokenizer_3=t5_words(),
    )


def pixart() -> Any:
    return models.PixArtSigmaPipeline(
        tokenizer=t5_words(),
        text_encoder=t5(),
        vae=autoencoder(4),
        transformer=models.PixArtTransformer2DModel(
            sample_size=32,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=WIDTH,
            cross_attention_dim=32,
            in_channels=4,
            out_channels=8,
        ),
        # As Sigma's own: it draws noise of its own in every step.
        scheduler=models.EulerAncestralDiscreteScheduler(),
    )


def sana_transformer(**more: Any) -> Any:
    return models.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        **more,
    )


def deep_autoencoder() -> Any:
    return models.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    )


def sana() -> Any:
    return models.SanaPipeline(
        tokenizer=gemma_words(),
        text_encoder=small_decoder("Gemma2", 64),
        vae=deep_autoencoder(),
        transformer=sana_transformer(),
        scheduler=flow(shift=3.0),
    )


def sprint() -> Any:
    return models.SanaSprintPipeline(
        tokenizer=gemma_words(),
        text_encoder=small_decoder("Gemma2", 64),
        vae=deep_autoencoder(),
        transformer=sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        scheduler=models.SCMScheduler(),
    )


def lumina() -> Any:
    return models.Lumina2Pipeline(
        transformer=models.Lumina2Transformer2DModel(
            sample_size=32,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 64, 64),
            cap_feat_dim=WIDTH,
        ),
        scheduler=flow(),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=small_decoder("Gemma2", 64),
        tokenizer=gemma_words(),
    )


def zimage() -> Any:
    return models.ZImagePipeline(
        scheduler=flow(),
        vae=autoencoder(4, shift_factor=0.1),
        text_encoder=small_decoder("Qwen3", 64),
        tokenizer=chatty(),
        transformer=models.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[600, 64, 64],
        ),
    )


def qwen() -> Any:
    told = towers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": WIDTH,
            "intermediate_size": 37,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
    )
    return models.QwenImagePipeline(
        scheduler=flow(),
        vae=models.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=towers.Qwen2_5_VLForConditionalGeneration(told),
        tokenizer=gemma_words(),
        transformer=models.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
    )


def aura() -> Any:
    told = towers.UMT5Config(
        vocab_size=len(t5_words()), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4
    )
    return models.AuraFlowPipeline(
        tokenizer=t5_words(),
        text_encoder=towers.UMT5EncoderModel(told),
        vae=autoencoder(4),
        transformer=models.AuraFlowTransformer2DModel(
            sample_size=32,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=WIDTH,
            pos_embed_max_size=2304,
        ),
        scheduler=flow(),
    )


def chatty() -> Any:
    words = gemma_words()
    words.chat_template = "{{ messages[0]['content'] }}"
    return words


def kandinsky() -> Any:
    return models.Kandinsky3Pipeline(
        tokenizer=t5_words(),
        text_encoder=t5(),
        unet=models.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=WIDTH,
        ),
        scheduler=models.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        movq=models.VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            num_vq_embeddings=12,
        ),
    )


#: Each with how its profile asks it.
PIPELINES: dict[str, tuple[Callable[[], Any], str]] = {
    "flux": (flux, "arguments = { max_sequence_length = 16 }\n"),
    "sd3": (sd3, "arguments = { negative_prompt = 'grey', max_sequence_length = 16 }\n"),
    "pixart": (pixart, "arguments = { use_resolution_binning = false }\n"),
    "sana": (sana, "arguments = { use_resolution_binning = false }\n"),
    "sprint": (sprint, "arguments = { use_resolution_binning = false }\n"),
    "lumina": (lumina, ""),
    "zimage": (zimage, "arguments = { max_sequence_length = 16 }\n"),
    "qwen": (qwen, "arguments = { true_cfg_scale = 4.0, negative_prompt = ' ' }\n"),
    "aura": (aura, "arguments = { max_sequence_length = 16 }\n"),
    "kandinsky": (kandinsky, ""),
}


def write(name: str, folder: Path, **how: Any) -> None:
    torch.manual_seed(3)
    with no_advice():
        PIPELINES[name][0]().save_pretrained(folder, **how)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
