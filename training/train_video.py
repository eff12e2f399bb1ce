"""Train the film model: `python -m training.train_video`.

A clip is a few of the 25 frames at their true positions. Given picture, embedding and bucket a film of this
world is all but decided, so training is plain regression at high noise, and few steps need no distillation.
"""

import random
from dataclasses import dataclass
from functools import cache

import torch

from training import codec, edm, motion, vision
from training.attention import QuickAttention
from training.clips import Clips, Studio, clips_of, draw_clips
from training.drawing import Ahead
from training.loop import STATE, WEIGHTS, Run, begin, in_bfloat16, muon, questions
from training.motion import choose
from training.practice import Practice
from training.world import FRAMES, SIZES, Scene, draw_scene, draw_size

FPS_IDS = (5.0, 6.0)
#: The samplers end here, see docs/decisions/0023: below, the noise would have to pass through the network.
SIGMA_MIN = 4.0
LEVEL_WEIGHT = 8.0
FLICKER_WEIGHT = 30.0
TINT_WEIGHT = 10.0


def draw_augmentation(count: int) -> torch.Tensor:
    kind = torch.rand(count)
    wide = torch.where(kind < 0.92, torch.rand(count), 1 + 2 * torch.rand(count))
    return torch.where(kind < 0.75, torch.full((count,), 0.02), wide)


def change_of(clips: Clips) -> torch.Tensor:
    """How far each cell is from the picture's, from 0 to 1."""
    away = (clips.clean - clips.picture[:, None] * codec.SCALING).abs().mean(2, keepdim=True)
    return (1.5 * away).clamp(max=1)


@dataclass
class Told:
    """What the network is told beside the noisy film, the way SVD is told it."""

    picture: torch.Tensor
    embedding: torch.Tensor
    ids: torch.Tensor


def told_of(clips: Clips, fps: torch.Tensor, augmentation: torch.Tensor, noise: torch.Tensor) -> Told:
    picture = clips.picture + augmentation[:, None, None, None] * noise
    return Told(picture, clips.embedding, torch.stack((fps, clips.buckets, augmentation), 1))


def estimate(unet: torch.nn.Module, x: torch.Tensor, sigma: torch.Tensor, told: Told) -> torch.Tensor:
    """The network's guess of the clean film."""
    wide = sigma.view(-1, 1, 1, 1, 1)
    conditioning = told.picture[:, None].expand(-1, x.shape[1], -1, -1, -1)
    with in_bfloat16(x.device):
        made = unet(
            torch.cat((edm.scaled(x, wide), conditioning), 2),
            0.25 * sigma.log(),
            encoder_hidden_states=told.embedding,
            added_time_ids=told.ids,
        ).sample
    return edm.clean_from(x, made.float(), wide)


def loudness(cells: codec.Cells, power: float) -> torch.Tensor:
    """Weights of the channels, C x 1 x 1: a unit's pixels, to a power. The loud ones are colour."""
    energy = 1 / cells.matrix.square().sum(0)
    weights = (energy / energy.mean()) ** power
    return (weights / weights.mean())[:, None, None]


def penalty(
    made: torch.Tensor, clean: torch.Tensor, change: torch.Tensor, loud: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Squared error in which cells that change count up to five times, plus what the eye minds most.

    That is a frame a shade off as a whole, a still cell that differs between frames, and an object whose hue
    slips: small squares all. `loud` weighs the channels where cells change.
    """
    error = made - clean
    level = error.mean((3, 4)).square()
    flicker = (1 - change) * (error - error.mean(1, keepdim=True)).square()
    squares = (1 + 4 * change * loud) * error.square()
    tint = loud * ((change * error).sum((3, 4), True) / (1 + change.sum((3, 4), True))).square()
    return (
        squares.mean()
        + LEVEL_WEIGHT * level.mean()
        + FLICKER_WEIGHT * flicker.mean()
        + TINT_WEIGHT * tint.mean()
    )


def guess_of(unet: torch.nn.Module, cells: codec.Cells, clips: Clips) -> torch.Tensor:
    """The clean clips, from a random noise level."""
    count, device = len(clips.clean), clips.clean.device
    fps = torch.tensor(FPS_IDS)[torch.randint(len(FPS_IDS), (count,))].to(device)
    augmentation = draw_augmentation(count).to(device)
    told = told_of(clips, fps, augmentation, cells.augmentation(clips.picture))
    sigma = edm.log_uniform(count, SIGMA_MIN, edm.SIGMA_MAX).to(device)
    x = clips.clean + sigma.view(-1, 1, 1, 1, 1) * torch.randn_like(clips.clean)
    return estimate(unet, x, sigma, told)


def outcomes(made: torch.Tensor, clips: Clips) -> list[tuple[Scene, float]]:
    """How far each scene's changing cells are from the truth."""
    change = change_of(clips)
    errors = ((made.detach() - clips.clean).square() * change).mean((1, 2, 3, 4)) / (
        change.mean((1, 2, 3, 4)) + 0.01
    )
    return [(s, e) for s, e in zip(clips.scenes, errors.tolist(), strict=True) if s is not None]


def judge(unet: torch.nn.Module, held_out: Clips) -> dict[str, float]:
    """Squared error of the clean film in one step and in four, of copying the picture, and the flicker."""
    generator, device = torch.Generator().manual_seed(5), held_out.clean.device
    noise = torch.randn(held_out.clean.shape, generator=generator).to(device)
    still = held_out.picture[:, None] * codec.SCALING
    moving = ((held_out.clean - still).abs().mean(2, keepdim=True) > 0.1).float()
    count = len(noise)
    fps, augmentation = torch.tensor([[6.0], [0.02]], device=device).expand(2, count)
    told = told_of(held_out, fps, augmentation, torch.zeros_like(still[:, 0]))
    found = {}

    def note(name: str, made: torch.Tensor) -> None:
        error = (made - held_out.clean).square()
        found[f"moving_{name}"] = float((error * moving).sum() / moving.sum() / codec.CHANNELS)
        found[f"all_{name}"] = float(error.mean())
        still_cells = (1 - moving.amax(1, keepdim=True)).expand_as(moving)
        spread = (made - made.mean(1, keepdim=True)).square() * still_cells
        found[f"flicker_{name}"] = float(spread.sum() / still_cells.sum() / codec.CHANNELS)

    made = torch.zeros_like(noise)
    for number, sigma in enumerate(edm.lcm_levels(4, SIGMA_MIN), 1):
        made = estimate(unet, made + sigma * noise, torch.full((count,), sigma, device=device), told)
        noise = torch.randn(noise.shape, generator=generator).to(device)
        if number in (1, 4):
            note(str(number), made)
    copied = (still - held_out.clean).square()
    found["moving_copy"] = float((copied * moving).sum() / moving.sum() / codec.CHANNELS)
    return found


@cache
def open_studio() -> Studio:
    return Studio(codec.load(STATE / "vae"), vision.load(STATE / "image_encoder"))


@dataclass
class ClipDrawer:
    """Draws a step's clips."""

    clips: int
    frames: int
    even: bool

    def draw(self, rng: random.Random, news: Practice) -> Clips:
        size = rng.choice(SIZES) if self.even else draw_size(rng)
        return draw_clips(open_studio(), rng, size, self.clips, self.frames, news.draw)


def held_out_clips(studio: Studio) -> Clips:
    rng = random.Random(990_004)
    scenes = [draw_scene(rng, (512, 288)) for _ in range(8)]
    return clips_of(studio, scenes, [list(range(FRAMES))] * len(scenes))


def main() -> None:
    ask = questions(600)
    ask.add_argument("--clips", type=int, default=8)
    ask.add_argument("--frames", type=int, default=5)
    ask.add_argument("--lr", type=float, default=0.01)
    ask.add_argument("--practice", type=float, default=0.5, help="share of scenes of kinds that go badly")
    ask.add_argument("--loud", type=float, default=0.7, help="power of the weight of loud channels")
    ask.add_argument("--worker", type=int, help="its number, if several train beside each other")
    ask.add_argument("--even", action="store_true", help="draw all five shapes alike")
    told = ask.parse_args()
    device = begin(told, 4)
    unet = motion.build()
    motion.start_as_copier(unet)
    choosers = motion.let_choose(unet)
    if device.type == "cpu":
        unet.set_attn_processor(QuickAttention())
    unet.to(device)
    optimizer = muon(unet, told.lr, 1e-3, ("conv_in", "conv_out"))
    run = Run("video", unet, optimizer, told.minutes, told.cooldown, worker=told.worker)
    if told.from_shipped:
        run.begin_from(WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    drawer, practice = ClipDrawer(told.clips, told.frames, told.even), Practice(told.practice)
    studio = open_studio()
    held_out, cells = held_out_clips(studio).to(device), studio.cells.to(device)
    loud = loudness(cells, told.loud)

    def look() -> dict[str, float]:
        choose(choosers, None)
        return judge(unet, held_out)

    with Ahead(drawer, told.drawers, 4000 + run.step + 1_000_000 * (told.worker or 0)) as ahead:
        while run.going():
            clips = ahead.next(practice).to(device)
            choose(choosers, clips.frames)
            made = guess_of(unet, cells, clips)
            practice.note(outcomes(made, clips))
            run.learn(penalty(made, clips.clean, change_of(clips), loud))
            if run.due(300):
                run.save(**run.with_average(look))
    run.save(**run.with_average(look))


if __name__ == "__main__":
    main()
