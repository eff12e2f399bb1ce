"""Let the decoder learn on what it is really given: `python -m training.train_decoder`.

The film model's guesses are a little off, and a decoder that never saw such latents draws them soft. Half of
each batch is guesses with the true frames beside them, half true latents, so that the codec itself is not
lost. Run it after the film model's last training.
"""

import random
from collections import deque

import torch

from training import codec, edm, motion
from training.clips import clips_of, some_frames
from training.drawing import Ahead
from training.loop import Run, averaged, begin, muon, questions
from training.measure import psnr
from training.motion import choose
from training.render import film, render_box
from training.train_codec import CROP, FOLDER, CropDrawer, borders_of, drawn_again, keep, loss_of, prepared
from training.train_video import draw_augmentation, estimate, open_studio, told_of
from training.world import CELL, Scene, anchor, draw_scene, draw_size, pose

Guess = tuple[Scene, int, torch.Tensor]
SHELF = 600


class Guesser:
    """The film model as it was last averaged, sampled in one step."""

    def __init__(self, device: torch.device) -> None:
        self.studio, self.device = open_studio(), device
        self.cells = self.studio.cells.to(device)
        self.unet = motion.build().eval()
        self.unet.load_state_dict(averaged("video"))
        self.unet.to(device)
        self.choosers = motion.let_choose(self.unet)

    @torch.no_grad()
    def draw(self, scenes: list[Scene], frames: list[list[int]]) -> list[Guess]:
        """Unscaled latents of the asked frames."""
        clips = clips_of(self.studio, scenes, frames).to(self.device)
        count = len(scenes)
        noise = self.cells.augmentation(clips.picture)
        fps, sigma = torch.tensor([[6.0], [edm.SIGMA_MAX]], device=self.device).expand(2, count)
        told = told_of(clips, fps, draw_augmentation(count).to(self.device), noise)
        choose(self.choosers, clips.frames)
        made = estimate(self.unet, edm.SIGMA_MAX * torch.randn_like(clips.clean), sigma, told) / codec.SCALING
        return [
            (scene, frame, made[i, j]) for i, scene in enumerate(scenes) for j, frame in enumerate(frames[i])
        ]


def cut(guess: Guess, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """A square of cells about the object: the guessed latents and the true pixels."""
    scene, frame, latents = guess
    x, y = anchor(scene)
    dx, dy, _ = pose(scene.motion, frame, scene.bucket)
    spot = []
    for middle, side in ((x + dx, scene.size[0]), (y + dy, scene.size[1])):
        first = round(middle / CELL - CROP / 2) + rng.randint(-1, 1)
        spot.append(min(max(0, first), side // CELL - CROP))
    left, top = spot
    box = (left * CELL, top * CELL, (left + CROP) * CELL, (top + CROP) * CELL)
    return latents[:, top : top + CROP, left : left + CROP], render_box(scene, [frame], box)[0]


def judge(vae: codec.AutoencoderTiny, guesses: list[Guess]) -> dict[str, float]:
    """PSNR of decoded guesses to the true frames."""
    found = [
        psnr(codec.decode(vae, latents[None])[0].cpu() / 2 + 0.5, film(scene, [frame])[0])
        for scene, frame, latents in guesses
    ]
    return {"psnr_own": sum(found) / len(found)}


def main() -> None:
    ask = questions(50)
    ask.add_argument("--batch", type=int, default=12)
    ask.add_argument("--lr", type=float, default=0.003)
    told = ask.parse_args()
    device = begin(told, 7)
    vae = prepared(told.from_shipped)
    cells = codec.Cells(vae)
    vae.to(device).encoder.requires_grad_(False)
    guesser = Guesser(device)
    held_rng = random.Random(990_006)
    torch.manual_seed(990_006)
    scenes = [draw_scene(held_rng, (512, 288)) for _ in range(12)]
    held_out = guesser.draw(scenes, [[8, 16, 24]] * len(scenes))
    run = Run("codec", vae, muon(vae, told.lr, told.lr / 6, borders_of(vae)), told.minutes, told.cooldown)
    rng = random.Random(7000 + run.step)
    torch.manual_seed(7000 + run.step)
    print(run.with_average(lambda: judge(vae, held_out)), flush=True)
    shelf: deque[Guess] = deque(maxlen=SHELF)
    half = told.batch // 2
    with Ahead(CropDrawer(half), told.drawers, 7000 + run.step) as ahead:
        while run.going():
            for _ in range(12 if not shelf else 1):
                scenes = [draw_scene(rng, draw_size(rng))]
                shelf.extend(guesser.draw(scenes, [some_frames(rng, 5)]))
            own = [cut(rng.choice(shelf), rng) for _ in range(half)]
            plain = ahead.next()
            coded = cells.encode(plain)
            noisy = (coded + 0.03 * torch.randn_like(coded)).to(device)
            pictures = torch.cat((torch.stack([o[1] for o in own]), plain)).to(device)
            latents = torch.cat((torch.stack([o[0] for o in own]), noisy))
            run.learn(loss_of(drawn_again(vae, latents), pictures))
            if run.due(180):
                keep(run)
                print(run.with_average(lambda: judge(vae, held_out)), flush=True)
    keep(run)
    print(run.with_average(lambda: judge(vae, held_out)), FOLDER, flush=True)


if __name__ == "__main__":
    main()
