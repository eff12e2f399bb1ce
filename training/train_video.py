"""Train the film model: `python -m training.train_video --minutes 90`.

A clip is a few of the 25 frames at their true positions. Given picture, embedding and bucket a film of this
world is all but decided, so high noise levels are plain regression and few steps need no distillation.
"""

import random

import torch

from training import codec, edm, motion, vision
from training.attention import QuickAttention
from training.clips import Clips, Studio, clips_of, draw_clips
from training.loop import STATE, WEIGHTS, Run, muon, questions
from training.world import FRAMES, draw_scene, draw_size

FPS_IDS = (5.0, 6.0)
LEVEL_WEIGHT = 8.0


def draw_sigmas(count: int) -> torch.Tensor:
    """Mostly the levels where the film is decided, some where it is cleaned."""
    bands = torch.multinomial(torch.tensor((0.55, 0.27, 0.18)), count, replacement=True)
    levels = torch.stack(
        [edm.log_uniform(count, *band) for band in ((12, edm.SIGMA_MAX), (0.3, 12), (0.004, 0.3))]
    )
    return levels.gather(0, bands[None])[0]


def draw_augmentation(count: int) -> torch.Tensor:
    kind = torch.rand(count)
    wide = torch.where(kind < 0.92, torch.rand(count), 1 + 2 * torch.rand(count))
    return torch.where(kind < 0.75, torch.full((count,), 0.02), wide)


def weights_of(clips: Clips) -> torch.Tensor:
    """Cells that change over the clip count up to five times."""
    change = (clips.clean - clips.picture[:, None] * codec.SCALING).abs().mean(2, keepdim=True)
    return 1 + 4 * (1.5 * change).clamp(max=1)


def answer(
    unet: torch.nn.Module,
    x: torch.Tensor,
    sigma: torch.Tensor,
    clips: Clips,
    augmented: torch.Tensor,
    augmentation: torch.Tensor,
    fps: torch.Tensor,
    kept: torch.Tensor,
) -> torch.Tensor:
    """Ask the network the way SVD is asked; where `kept` is 0 the conditioning is zeroed."""
    length = x.shape[1]
    conditioning = (augmented * kept[:, None, None, None])[:, None].expand(-1, length, -1, -1, -1)
    ids = torch.stack((fps, clips.buckets, augmentation), 1)
    with torch.autocast("cpu", torch.bfloat16):
        return unet(
            torch.cat((edm.scaled(x, sigma.view(-1, 1, 1, 1, 1)), conditioning), 2),
            0.25 * sigma.log(),
            encoder_hidden_states=clips.embedding * kept[:, None, None],
            added_time_ids=ids,
        ).sample.float()


def loss_of(unet: torch.nn.Module, studio: Studio, clips: Clips) -> torch.Tensor:
    count = len(clips.clean)
    sigma, augmentation = draw_sigmas(count), draw_augmentation(count)
    augmented = clips.picture + augmentation[:, None, None, None] * studio.cells.augmentation(clips.picture)
    fps = torch.tensor(FPS_IDS)[torch.randint(len(FPS_IDS), (count,))]
    kept = (torch.rand(count) > 0.08).float()
    noise = torch.randn_like(clips.clean)
    wide = sigma.view(-1, 1, 1, 1, 1)
    made = answer(unet, clips.clean + wide * noise, sigma, clips, augmented, augmentation, fps, kept)
    error = made - edm.target(clips.clean, noise, wide)
    # The eye sees a frame that is a shade off as a whole; squares of single cells hardly do.
    level = error.mean((3, 4)).square().mean()
    return (weights_of(clips) * error.square()).mean() + LEVEL_WEIGHT * level


def judge(unet: torch.nn.Module, studio: Studio, held_out: Clips) -> dict[str, float]:
    """Squared error of the clean estimate where the film moves and everywhere, and of copying the picture."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(held_out.clean.shape, generator=generator)
    still = held_out.picture[:, None] * codec.SCALING
    moving = ((held_out.clean - still).abs().mean(2, keepdim=True) > 0.1).float()
    count = len(noise)
    found = {}
    for sigma in (700.0, 0.497):
        level = torch.full((count,), sigma)
        x = held_out.clean + sigma * noise
        little = torch.full((count,), 0.02)
        made = answer(
            unet, x, level, held_out, held_out.picture, little, torch.full((count,), 6.0), torch.ones(count)
        )
        error = (edm.clean_from(x, made, sigma) - held_out.clean).square()
        found[f"moving_{sigma:g}"] = float((error * moving).sum() / moving.sum() / codec.CHANNELS)
        found[f"all_{sigma:g}"] = float(error.mean())
    copied = (still - held_out.clean).square()
    found["moving_copy"] = float((copied * moving).sum() / moving.sum() / codec.CHANNELS)
    return found


def held_out_clips(studio: Studio) -> Clips:
    rng = random.Random(990_004)
    scenes = [draw_scene(rng, (512, 288)) for _ in range(8)]
    return clips_of(studio, scenes, [list(range(FRAMES))] * len(scenes))


def main() -> None:
    ask = questions(90)
    ask.add_argument("--clips", type=int, default=8)
    ask.add_argument("--frames", type=int, default=5)
    ask.add_argument("--lr", type=float, default=0.01)
    ask.add_argument("--cooldown", type=float, default=0.4)
    told = ask.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(4)
    studio = Studio(codec.load(STATE / "vae"), vision.load(STATE / "image_encoder"))
    unet = motion.build()
    motion.start_as_copier(unet)
    choosers = motion.let_choose(unet)
    unet.set_attn_processor(QuickAttention())
    optimizer = muon(unet, told.lr, 1e-3, ("conv_in", "conv_out"))
    run = Run("video", unet, optimizer, told.minutes, told.cooldown)
    if told.from_shipped:
        run.begin_from(WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    rng = random.Random(4000 + run.step)
    torch.manual_seed(4000 + run.step)
    held_out = held_out_clips(studio)

    def look() -> dict[str, float]:
        for chooser in choosers:
            chooser.frames = None
        return judge(unet, studio, held_out)

    while run.going():
        clips = draw_clips(studio, rng, draw_size(rng), told.clips, told.frames)
        for chooser in choosers:
            chooser.frames = clips.frames.flatten()
        run.learn(loss_of(unet, studio, clips))
        if run.due(300):
            run.save(**run.with_average(look))
    run.save(**run.with_average(look))


if __name__ == "__main__":
    main()
