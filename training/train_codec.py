"""Train the codec: `python -m training.train_codec`.

The encoder is fitted once, in seconds, and then stands still; only the decoder learns.
"""

import random
from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d, l1_loss, mse_loss

from training import codec
from training.drawing import Ahead
from training.loop import STATE, WEIGHTS, Run, begin, in_bfloat16, muon, questions
from training.render import film, render_box
from training.sheets import save_sheet
from training.world import CELL, FRAMES, anchor, draw_scene, pose

CROP = 7
FOLDER = STATE / "vae"


def crop(rng: random.Random) -> torch.Tensor:
    """A square of 7 x 7 cells from any frame of any scene, most often around the object."""
    side = CROP * CELL
    if rng.random() < 0.1:
        return codec.strange_picture(rng, (side, side))
    scene = draw_scene(rng)
    frame = rng.choice((0, rng.randrange(FRAMES)))
    x, y = anchor(scene)
    dx, dy, _ = pose(scene.motion, frame, scene.bucket)
    if rng.random() < 0.2:
        left, top = rng.randrange(scene.size[0]), rng.randrange(scene.size[1])
    else:
        left, top = round(x + dx) - side // 2, round(y + dy) - side // 2
        left, top = left + rng.randint(-48, 48), top + rng.randint(-48, 48)
    # Mostly on the grid, as films are; sometimes off it, as foreign pictures are.
    step = CELL if rng.random() < 0.7 else 1
    left = min(max(0, left), scene.size[0] - side) // step * step
    top = min(max(0, top), scene.size[1] - side) // step * step
    return render_box(scene, [frame], (left, top, left + side, top + side))[0]


@dataclass
class CropDrawer:
    """Draws a step's squares."""

    batch: int

    def draw(self, rng: random.Random, news: None) -> torch.Tensor:
        return torch.stack([crop(rng) for _ in range(self.batch)])


def sample_cells(rng: random.Random, count: int) -> torch.Tensor:
    cut = codec.cells_of(CropDrawer(count).draw(rng, None))
    return cut.reshape(-1, 3, CELL, CELL)


def slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss_of(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    edges = sum(l1_loss(a, b) for a, b in zip(slopes(made), slopes(wanted), strict=True))
    level = l1_loss(avg_pool2d(made, 8), avg_pool2d(wanted, 8))
    return l1_loss(made, wanted) + 0.5 * mse_loss(made, wanted) + edges + level


def worn(latents: torch.Tensor) -> torch.Tensor:
    """Latents with some noise, of another strength in each picture."""
    strength = 0.06 * torch.rand(len(latents), 1, 1, 1).to(latents.device)
    return latents + strength * torch.randn_like(latents)


def drawn_again(vae: codec.AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1] that the decoder makes of latents."""
    with in_bfloat16(latents.device):
        return codec.decode(vae, latents).float() / 2 + 0.5


def prepared(from_shipped: bool) -> codec.AutoencoderTiny:
    """The codec of this state, or the shipped one, or a new one with its encoder fitted."""
    if (FOLDER / "config.json").exists():
        return codec.AutoencoderTiny.from_pretrained(FOLDER)
    if from_shipped:
        vae = codec.AutoencoderTiny.from_pretrained(WEIGHTS / "vae").float()
        vae.save_pretrained(FOLDER)
        return vae
    torch.manual_seed(1)
    rng = random.Random(1)
    vae = codec.build()
    kept = codec.fit_encoder(vae, sample_cells(rng, 1500))
    print(f"the encoder keeps {kept:.4f} of the energy", flush=True)
    codec.start_decoder(vae, codec.Cells(vae), CropDrawer(200).draw(rng, None))
    vae.save_pretrained(FOLDER)
    return vae


def borders_of(vae: codec.AutoencoderTiny) -> tuple[str, str]:
    return "decoder.layers.0", f"decoder.layers.{len(vae.decoder.layers) - 1}"


def judge(vae: codec.AutoencoderTiny) -> dict[str, float]:
    """PSNR over whole frames of twenty scenes never trained on, and a sheet."""
    rng = random.Random(990_001)
    worst, total, rows = 99.0, 0.0, []
    for i in range(20):
        scene = draw_scene(rng)
        frames = [0, rng.randrange(FRAMES)]
        true = film(scene, frames)
        coded = codec.encode(vae, true.to(vae.device) * 2 - 1)
        made = codec.decode(vae, coded).cpu() / 2 + 0.5
        psnr = [
            float(-10 * (a - b).square().mean().log10()) for a, b in zip(made.clamp(0, 1), true, strict=True)
        ]
        worst, total = min(worst, *psnr), total + sum(psnr)
        if i < 6:
            rows.append([*true, *made])
    for number, row in enumerate(rows):
        save_sheet([row], STATE / "sheets" / f"codec_{number}.png", 300)
    return {"psnr": total / 40, "psnr_worst": worst}


def keep(run: Run) -> None:
    """Save the run, and the averaged codec where the other parts look for it."""

    def look() -> dict[str, float]:
        run.model.save_pretrained(FOLDER)
        return judge(run.model)

    run.save(**run.with_average(look))


def main() -> None:
    ask = questions(26)
    ask.add_argument("--batch", type=int, default=8)
    told = ask.parse_args()
    device = begin(told, 1)
    vae = prepared(told.from_shipped).to(device)
    cells = codec.Cells(vae)
    vae.encoder.requires_grad_(False)
    run = Run("codec", vae, muon(vae, 0.006, 1e-3, borders_of(vae)), told.minutes, told.cooldown)
    with Ahead(CropDrawer(told.batch), told.drawers, 1000 + run.step) as ahead:
        while run.going():
            pictures = ahead.next().to(device)
            run.learn(loss_of(drawn_again(vae, worn(cells.encode(pictures))), pictures))
            if run.due():
                keep(run)
    keep(run)


if __name__ == "__main__":
    main()
