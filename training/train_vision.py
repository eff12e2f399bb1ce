"""Train the image encoder: `python -m training.train_vision`.

The embedding must name object, colour, place and motion of clean, soft and noisy pictures alike, because the
first frame of a prompt's film is drawn by a small model.
"""

import random
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, interpolate

from training import vision
from training.captions import KINDS
from training.drawing import Ahead
from training.loop import STATE, WEIGHTS, Run, begin, in_bfloat16, muon, questions
from training.render import still
from training.train_text import Tower
from training.world import Scene, draw_scene

FOLDER = STATE / "image_encoder"


def worn(picture: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Cut the borders a little, soften and add noise, each sometimes."""
    _, h, w = picture.shape
    if rng.random() < 0.4:
        cut = [rng.uniform(0, 0.03) for _ in range(4)]
        picture = picture[:, int(cut[0] * h) : h - int(cut[1] * h), int(cut[2] * w) : w - int(cut[3] * w)]
    if rng.random() < 0.5:
        share = rng.uniform(0.06, 0.3)
        small = (max(12, int(h * share)), max(12, int(w * share)))
        picture = interpolate(picture[None], small, mode="bilinear", antialias=True)[0]
    seen = vision.squash(picture)
    if rng.random() < 0.3:
        seen = (seen + torch.randn_like(seen) * rng.uniform(0, 0.15)).clamp(0, 1)
    return seen


@dataclass
class PictureDrawer:
    """Draws a step's pictures and what is in them."""

    batch: int

    def draw(self, rng: random.Random, news: None) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = [draw_scene(rng) for _ in range(self.batch)]
        seen = torch.stack([worn(still(s), rng) for s in scenes])
        return seen, labels_of(scenes)


def labels_of(scenes: list[Scene]) -> torch.Tensor:
    return torch.tensor([[values.index(getattr(s, kind)) for kind, values in KINDS.items()] for s in scenes])


def accuracy(tower: Tower) -> dict[str, float]:
    rng = random.Random(990_003)
    scenes = [draw_scene(rng) for _ in range(200)]
    seen = torch.stack([vision.squash(still(s)) for s in scenes])
    labels = labels_of(scenes)
    found = [s.cpu() for s in tower.heads(vision.embed(tower.model, seen.to(tower.device)))]
    return {
        kind: float((scores.argmax(1) == labels[:, i]).float().mean())
        for i, (kind, scores) in enumerate(zip(KINDS, found, strict=True))
    }


def anchored(kept: Tower, seen: torch.Tensor, labels: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Hold embeddings that already say all four things right where the film model learned to find them."""
    with torch.no_grad():
        before = vision.embed(kept.model, seen)
        right = torch.stack([s.argmax(1) == labels[:, i] for i, s in enumerate(kept.heads(before))]).all(0)
    return ((now - before).square().mean(1) * right).mean()


def loss_of(
    tower: Tower, kept: Tower, drawn: tuple[torch.Tensor, torch.Tensor], anchor: float
) -> torch.Tensor:
    seen, labels = (each.to(tower.device) for each in drawn)
    with in_bfloat16(tower.device):
        embedding = vision.embed(tower.model, seen)
        found = tower.heads(embedding)
    loss = sum(cross_entropy(s.float(), labels[:, i]) for i, s in enumerate(found))
    return loss + anchor * anchored(kept, seen, labels, embedding.float()) if anchor else loss


def main() -> None:
    ask = questions(16)
    ask.add_argument("--batch", type=int, default=32)
    ask.add_argument("--lr", type=float, default=0.01)
    ask.add_argument("--anchor", type=float, default=0.0, help="hold right embeddings in place this firmly")
    told = ask.parse_args()
    device = begin(told, 3)
    tower = Tower(vision.build(), vision.WIDTH).to(device)
    run = Run("vision", tower, muon(tower, told.lr, told.lr / 10), told.minutes, told.cooldown)
    if told.from_shipped:
        run.begin_from(WEIGHTS / "image_encoder" / "model.safetensors", "model.")
    kept = deepcopy(tower).eval()
    kept.load_state_dict(run.average)
    with Ahead(PictureDrawer(told.batch), told.drawers, 3000 + run.step) as ahead:
        while run.going():
            run.learn(loss_of(tower, kept, ahead.next(), told.anchor))
            if run.due(90):
                run.save(**run.with_average(lambda: accuracy(tower)))
    run.save(**run.with_average(lambda: accuracy(tower)))
    tower.load_state_dict(run.average)
    tower.model.save_pretrained(FOLDER)


if __name__ == "__main__":
    main()
