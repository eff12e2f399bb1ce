"""Pictures to latents and back through the profile's autoencoder, whichever diffusers class it is.

Encoding always runs in float32 (half precision there shows in every frame); decoding in the device's
number format. Unscaled latents are what the video UNet is conditioned on; it denoises scaled ones.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from stillmotion import profiles
from stillmotion.engine.fused import channels_last
from stillmotion.engine.loading import load_network, read_json
from stillmotion.errors import WeightsMissing

from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (  # isort: skip
    AutoencoderKLTemporalDecoder,
)
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny  # isort: skip

CLASSES = {kind.__name__: kind for kind in (AutoencoderKLTemporalDecoder, AutoencoderTiny)}


class Codec:
    """The autoencoder with its pixel folding."""

    def __init__(
        self,
        vae: Any,  # the two classes share no type
        folding: profiles.Codec,
        dtype: torch.dtype,
    ) -> None:
        self.vae = vae
        self.folding = folding
        self.dtype = dtype
        self.channels: int = vae.config["latent_channels"]
        self.scaling: float = vae.config["scaling_factor"]
        self._takes_frames = "num_frames" in inspect.signature(vae.decode).parameters
        vae.decoder.to(dtype)
        channels_last(vae.decoder)

    @property
    def cell(self) -> int:
        return self.folding.cell

    def encode(self, picture: Tensor) -> Tensor:
        """Encode (n, 3, H, W) in [-1, 1] to unscaled latents; of a distribution, its mode."""
        folded = pixel_unshuffle(picture.float(), self.folding.unshuffle_in)
        encoded = self.vae.encode(folded)
        latents: Tensor = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
        if latents.shape[-1] * self.cell != picture.shape[-1]:
            raise WeightsMissing(
                f"The autoencoder makes {latents.shape[-1]} cells of {picture.shape[-1]} pixels, but "
                f"codec.cell says {self.cell} pixels a cell: these weights belong to another profile."
            )
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (n, C, h, w) of consecutive frames to (n, 3, H, W), about [-1, 1]."""
        return self._decode(latents, self.dtype)

    def decode_in_float32(self, latents: Tensor) -> Tensor:
        """Decode as `decode` does, at twice the memory, what overflows half precision."""
        try:
            self.vae.decoder.float()
            return self._decode(latents, torch.float32)
        finally:
            self.vae.decoder.to(self.dtype)

    def _decode(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        unscaled = (latents / self.scaling).to(dtype, memory_format=torch.channels_last)
        more = {"num_frames": len(unscaled)} if self._takes_frames else {}
        return pixel_shuffle(self.vae.decode(unscaled, **more).sample, self.folding.shuffle_out).float()


def load_codec(
    folder: Path, folding: profiles.Codec, *, device: torch.device, dtype: torch.dtype, variant: str
) -> Codec:
    """Load the autoencoder whose class the folder's config names."""
    name = read_json(folder / "config.json").get("_class_name")
    if name not in CLASSES:
        raise WeightsMissing(f"{folder}/config.json names {name!r}; it must be one of {', '.join(CLASSES)}.")
    vae = load_network(CLASSES[name], folder, device=device, dtype=torch.float32, variant=variant)
    return Codec(vae, folding, dtype)
