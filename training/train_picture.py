"""Train the first-frame model: `python -m training.train_picture`."""

import random
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch

from training import codec, edm, picture, text
from training.attention import QuickAttention
from training.captions import KINDS, describe, shown
from training.clips import Studio
from training.drawing import Ahead
from training.loop import STATE, WEIGHTS, Run, begin, in_bfloat16, muon, questions
from training.sheets import save_sheet
from training.train_text import draw_caption
from training.world import Scene, draw_scene, draw_size

NOT_NAMED = 0.1


class Words:
    """Hidden states of captions."""

    def __init__(self, tokenizer: text.CLIPTokenizer, encoder: torch.nn.Module) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder

    def __call__(self, texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            ids = text.tokens(self.tokenizer, texts).to(self.encoder.device)
            return self.encoder(ids).last_hidden_state


def draw_sigmas(count: int) -> torch.Tensor:
    high = edm.log_uniform(count, 1.0, picture.SIGMA_MAX)
    low = edm.log_uniform(count, 0.05, 1.0)
    return torch.where(torch.rand(count) < 0.85, high, low)


def settled(scene: Scene) -> Scene:
    """Leave one layout to a caption; only the light is the seed's.

    With free shifts and mirrors this model drew the layouts over each other: two objects where one was asked.
    The mean of two lights is again a light.
    """
    return replace(scene, shift=0, mirrored=False)


Drawn = tuple[list[str], torch.Tensor, torch.Tensor]


@dataclass
class FirstFrameDrawer:
    """Draws a step's captions and, as scaled latents, their pictures and the places of these alone."""

    batch: int

    def draw(self, rng: random.Random, news: None) -> Drawn:
        size = draw_size(rng)
        scenes = [settled(draw_scene(rng, size)) for _ in range(self.batch)]
        told = [draw_caption(s, rng) for s in scenes]
        captions = ["" if rng.random() < NOT_NAMED else caption.text for caption in told]
        scenes = [shown(s, c) if named else s for s, c, named in zip(scenes, told, captions, strict=True)]
        studio = open_studio()
        clean = torch.cat([studio.latents(s, [0]) for s in scenes]) * codec.SCALING
        return captions, clean, torch.stack([studio.empty(s) for s in scenes]) * codec.SCALING


@cache
def open_studio() -> Studio:
    return Studio(codec.load(STATE / "vae"), torch.nn.Identity())


def loss_of(unet: torch.nn.Module, words: Words, drawn: Drawn, device: torch.device) -> torch.Tensor:
    captions, clean, empty = drawn[0], drawn[1].to(device), drawn[2].to(device)
    sigma = draw_sigmas(len(clean)).to(device)
    wide = sigma.view(-1, 1, 1, 1)
    noise = torch.randn_like(clean)
    with in_bfloat16(device):
        made = unet(
            edm.scaled(clean + wide * noise, wide), 0.25 * sigma.log(), encoder_hidden_states=words(captions)
        ).sample.float()
    weight = 1 + 4 * (1.2 * (clean - empty).abs().mean(1, keepdim=True)).clamp(max=1)
    return (weight * (made - edm.target(clean, noise, wide)).square()).mean()


def nearest(studio: Studio, made: torch.Tensor, scene: Scene, kind: str) -> str:
    """The attribute value whose true picture, in any light, lies nearest to a made one."""
    best, value = float("inf"), ""
    for candidate, light in product(KINDS[kind], (0.0, 0.5, 1.0)):
        true = studio.latents(replace(settled(scene), **{kind: candidate}, light=light), [0])[0]
        distance = float((made - true).square().sum())
        if distance < best:
            best, value = distance, candidate
    return value


def judge(
    unet: torch.nn.Module,
    studio: Studio,
    words: Words,
    vae: codec.AutoencoderTiny,
    count: int = 20,
    steps: int = 6,
    guidance: float = 1.5,
) -> dict[str, float]:
    """Draw held-out prompts and name what came out by the nearest true picture."""
    rng = random.Random(990_005)
    scenes = [draw_scene(rng, (512, 288)) for _ in range(count)]
    prompts = [describe(s, rng, leave_out=0).text for s in scenes]
    noise = torch.randn((count, codec.CHANNELS, 9, 16), generator=torch.Generator().manual_seed(6))
    noise = noise.to(unet.device)
    made = picture.sample(unet, words(prompts), words([""]), noise, steps, guidance).cpu() / codec.SCALING
    right = {
        kind: sum(nearest(studio, m, s, kind) == getattr(s, kind) for m, s in zip(made, scenes, strict=True))
        for kind in KINDS
    }
    pictures = codec.decode(vae, made) / 2 + 0.5
    rows = [list(pictures[i : i + 5]) for i in range(0, count, 5)]
    save_sheet(rows, STATE / "sheets" / "picture.png", 256)
    return {kind: hits / count for kind, hits in right.items()}


def main() -> None:
    ask = questions(45)
    ask.add_argument("--batch", type=int, default=16)
    ask.add_argument("--lr", type=float, default=0.01)
    told = ask.parse_args()
    device = begin(told, 5)
    tokenizer, encoder = text.load(STATE / "text")
    words, studio, vae = Words(tokenizer, encoder.to(device)), open_studio(), codec.load(STATE / "vae")
    unet = picture.build()
    if device.type == "cpu":
        unet.set_attn_processor(QuickAttention())
    unet.to(device)
    run = Run(
        "picture", unet, muon(unet, told.lr, 1e-3, ("conv_in", "conv_out")), told.minutes, told.cooldown
    )
    if told.from_shipped:
        run.begin_from(WEIGHTS / "text_to_image" / "unet" / "diffusion_pytorch_model.safetensors")
    with Ahead(FirstFrameDrawer(told.batch), told.drawers, 5000 + run.step) as ahead:
        while run.going():
            run.learn(loss_of(unet, words, ahead.next(), device))
            if run.due(240):
                run.save(**run.with_average(lambda: judge(unet, studio, words, vae)))
    run.save(**run.with_average(lambda: judge(unet, studio, words, vae)))


if __name__ == "__main__":
    main()
