"""Make pictures and films with exported weights, in plain form: what the engine does, without the engine."""

from pathlib import Path

import torch

from training import codec, edm, motion, picture, text, vision
from training.train_picture import Words
from training.train_video import SIGMA_MIN
from training.world import CELL, FRAMES


class Maker:
    def __init__(self, folder: Path) -> None:
        drawer = folder / "text_to_image"
        self.vae = codec.load(folder / "vae").float()
        self.eye = vision.load(folder / "image_encoder").float()
        self.unet = motion.load(folder / "unet").float()
        tokenizer, encoder = text.load(drawer)
        self.words = Words(tokenizer, encoder.float())
        self.drawer = picture.load(drawer / "unet").float()

    @torch.no_grad()
    def draw(
        self,
        prompts: list[str],
        size: tuple[int, int] = (512, 288),
        seed: int = 0,
        steps: int = 6,
        guidance: float = 1.5,
    ) -> torch.Tensor:
        """Pictures in [0, 1] for prompts."""
        shape = (len(prompts), codec.CHANNELS, size[1] // CELL, size[0] // CELL)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        made = picture.sample(self.drawer, self.words(prompts), self.words([""]), noise, steps, guidance)
        return (codec.decode(self.vae, made / codec.SCALING) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def film(
        self,
        given: torch.Tensor,
        bucket: float = 127,
        augmentation: float = 0.02,
        steps: int = 4,
        seed: int = 0,
    ) -> torch.Tensor:
        """The 25 frames in [0, 1] that follow from one picture."""
        generator = torch.Generator().manual_seed(seed)
        embedding = vision.embed(self.eye, vision.squash(given)[None])[:, None]
        noisy = given[None] * 2 - 1 + augmentation * torch.randn(given[None].shape, generator=generator)
        conditioning = codec.encode(self.vae, noisy)[:, None].expand(-1, FRAMES, -1, -1, -1)
        ids = torch.tensor([[6.0, bucket, augmentation]])

        def network(x: torch.Tensor, sigma: float) -> torch.Tensor:
            time = 0.25 * torch.tensor(sigma).log()
            return self.unet(torch.cat((x, conditioning), 2), time, embedding, ids).sample

        noise = torch.randn(conditioning.shape, generator=generator)
        made = edm.lcm(network, noise, edm.lcm_levels(steps, SIGMA_MIN), generator)
        return (codec.decode(self.vae, made[0] / codec.SCALING) / 2 + 0.5).clamp(0, 1)
