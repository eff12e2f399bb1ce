"""All networks of a profile, loaded onto one device."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stillmotion
from stillmotion.engine import rewrites
from stillmotion.engine.codec import Codec, load_codec
from stillmotion.engine.first_frame import FirstFrame, load_first_frame
from stillmotion.engine.float8 import CAPABILITY, float8_linears
from stillmotion.engine.loading import combine, digest_files, load_network, load_tower
from stillmotion.engine.reuse import ReusingUNet
from stillmotion.errors import UserError
from stillmotion.lockfile import digest
from stillmotion.profiles import MemoryPreset, Part, Profile
from stillmotion.settings import shell_environment
from stillmotion.types import Sampler

from diffusers.models.unets.unet_spatio_temporal_condition import (  # isort: skip
    UNetSpatioTemporalConditionModel,
)
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection  # isort: skip

#: Versions that can change a film's bytes; av is absent on a bare GPU machine. The second line cuts and
#: cleans prompts, its last two only where they are there.
PACKAGES = (
    *("torch", "diffusers", "transformers", "numpy", "pillow", "av"),
    *("tokenizers", "sentencepiece", "ftfy", "beautifulsoup4"),
)

#: Beginnings of the environment variables by which libraries are told to take other routines than their own
#: choice: ONEDNN_MAX_CPU_ISA makes other films.
SWITCHES = ("CUBLAS_", "CUDNN_", "DIFFUSERS_", "DNNL_", "MKL_", "NVIDIA_TF32_", "ONEDNN_", "TORCH_")

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Weights:
    """What a film is made with. The two samplers may share one UNet."""

    unets: dict[Sampler, UNetSpatioTemporalConditionModel]
    codec: Codec
    clip: CLIPVisionModelWithProjection
    first_frame: FirstFrame

    @property
    def parts(self) -> dict[Part, tuple[nn.Module, ...]]:
        """What can be on the device or in host memory by itself."""
        vae = self.codec.vae
        return {
            **self.first_frame.parts,
            "image_encoder": (self.clip,),
            "vae_encoder": tuple(module for name, module in vae.named_children() if name != "decoder"),
            "unet": (self.unets[Sampler.EULER],),
            "turbo_unet": (self.unets[Sampler.LCM],),
            "vae_decoder": (vae.decoder,),
        }


def pick_device(name: str, profile: Profile) -> torch.device:
    """Check that a device is there and the profile's number format fits it."""
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"Device {name} is not there; torch sees {torch.cuda.device_count()} CUDA devices.")
    if device.type not in {"cpu", "cuda"}:
        raise UserError(f"Device {name!r} is not supported; use cpu or cuda:N.")
    if device.type == "cpu" and profile.needs_cuda:
        raise UserError(f"Profile {profile.name} needs a CUDA device, got {name}.")
    if device.type == "cuda" and profile.dtype.cuda_float8:
        capability = torch.cuda.get_device_capability(device)
        if capability < CAPABILITY:
            raise UserError(
                f"dtype.cuda_float8 of profile {profile.name} needs a GPU of compute capability "
                f"{CAPABILITY[0]}.{CAPABILITY[1]} or more (Ada, Hopper); {device_name(device)} has "
                f"{capability[0]}.{capability[1]}. Leave the key out."
            )
    return device


def pick_dtype(device: torch.device, profile: Profile) -> torch.dtype:
    name = profile.dtype.cuda if device.type == "cuda" else profile.dtype.cpu
    if device.type == "cpu" and profile.dtype.cpu_bf16 and has_bf16():
        name = "bfloat16"
    return getattr(torch, name)


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by instructions of its own."""
    known: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))


def load_weights(
    profile: Profile, folder: Path, device: torch.device, dtype: torch.dtype, preset: MemoryPreset
) -> Weights:
    """Load every part of a profile from its weights folder, those that do not stay into host memory."""
    parts, variant = profile.parts, profile.variant

    def how(*names: Part) -> dict[str, Any]:
        stays = set(preset.stay).issuperset(names)
        return {"device": device if stays else torch.device("cpu"), "dtype": dtype, "variant": variant}

    euler = profile.samplers.euler
    kind = UNetSpatioTemporalConditionModel if euler.reuse_interval == 1 else ReusingUNet
    unet = load_network(kind, folder / parts.unet, **how("unet"))
    if isinstance(unet, ReusingUNet):
        unet.cut_at(euler.reuse_branch)
    _rewrite(unet, profile, device)
    turbo = unet
    if parts.turbo_unet != parts.unet:
        bare = parts.turbo_unet.endswith(".safetensors")
        turbo = load_network(
            UNetSpatioTemporalConditionModel,
            folder / (parts.unet if bare else parts.turbo_unet),
            weights=folder / parts.turbo_unet if bare else None,
            **how("turbo_unet"),
        )
        _rewrite(turbo, profile, device)
    codec = load_codec(folder / parts.vae, profile.codec, **how("vae_encoder", "vae_decoder"))
    rewrites.rewrite_decoder(codec.vae.decoder, device)
    clip = load_tower(CLIPVisionModelWithProjection, folder / parts.image_encoder, **how("image_encoder"))
    pictures = how("text_encoder", "picture_unet", "picture_vae")
    pictures["variant"] = profile.variant_in(profile.first_frame.folder)
    first_frame = load_first_frame(folder, profile.first_frame, codec, **pictures)
    return Weights({Sampler.EULER: unet, Sampler.LCM: turbo}, codec, clip, first_frame)


def _rewrite(unet: UNetSpatioTemporalConditionModel, profile: Profile, device: torch.device) -> None:
    rewrites.rewrite_unet(unet, device)
    if device.type == "cuda" and profile.dtype.cuda_float8:
        float8_linears(unet)


def fingerprint(profile: Profile, folder: Path, device: torch.device, dtype: torch.dtype) -> str:
    """Hash all that equal bytes depend on besides the request, the memory preset and compiled code."""
    variables = shell_environment()
    return combine(
        [
            f"weights {digest_files(folder)}",
            f"profile {profile}",
            f"stillmotion {stillmotion.__version__}",
            # Between two versions the code that makes films changes, too.
            *(
                f"{file.name} {digest(file)}"
                for file in (*sorted(HERE.glob("*.py")), HERE.parent / "video.py")
            ),
            *(f"{name} {_version(name)}" for name in PACKAGES),
            f"device {device_name(device)}, {cuda_libraries(device)}",
            f"CPU {cpu_instructions()}",
            *(f"{name} {told}" for name, told in sorted(variables.items()) if name.startswith(SWITCHES)),
            f"dtype {dtype}",
            f"threads {profile.threads}",
        ]
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the instruction set torch uses on this CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()


def cpu_instructions() -> str:
    """What a CPU's libraries choose their routines by; `device_name` does not tell AMX from none."""
    known: Mapping[str, Any] = torch.cpu.get_capabilities()
    return " ".join(sorted(name for name, there in known.items() if there is True))


def cuda_libraries(device: torch.device) -> str:
    """What chooses and holds a GPU's kernels beside torch; one torch runs with several."""
    if device.type == "cpu":
        return "no CUDA"
    return f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
