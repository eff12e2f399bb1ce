"""The independent judge: two small convolutional classifiers that know films of the renderer only.

`Looks` names object, colour and place of one frame. `Moves` names the direction of a film; it learned from
films whose speed lines and flames were drawn at random, so that only the movement itself can tell it. No part
of the models that are judged is used here. `python -m training.checker` trains both in some ten minutes and
measures them on unseen films, and once more after training on shuffled labels.
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from training.loop import Run, halves, muon
from training.render import film, ground_texture, lay, poses_of, stage, texture
from training.world import COLOURS, FRAMES, MOTIONS, OBJECTS, PLACES, Scene, draw_scene

SIDE = 96
WATCHED = (0, 4, 8, 12, 16, 20, 24)
LOOKED_AT = (0, 8, 16, 24)
SEEN = {"thing": OBJECTS, "colour": tuple(COLOURS), "place": PLACES}
DIRECTIONS = {"take-off": "up", "rise": "up", "fall": "down"} | {m: m for m in MOTIONS[3:]}
WAYS = tuple(dict.fromkeys(DIRECTIONS.values()))
FOLDER = Path("training/checker")
#: Below this a direction is a matter of a few pixels.
SLOWEST = 60.0


def small(frames: torch.Tensor) -> torch.Tensor:
    """N x 3 x H x W in [0, 1] to a square."""
    return interpolate(frames, (SIDE, SIDE), mode="bilinear", antialias=True)


def _trunk(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (24, 48, 96, 128):
        layers += [
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
        ]
        channels = width
    return nn.Sequential(*layers, nn.GroupNorm(4, channels), nn.SiLU())


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk(3)
        self.head = nn.Linear(2 * 128, sum(len(v) for v in SEEN.values()))

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Scores of object, colour and place for N frames in [0, 1] of any size."""
        found = self.trunk(small(frames) * 2 - 1)
        pooled = torch.cat((found.mean((2, 3)), found.amax((2, 3))), 1)
        return list(self.head(pooled).split([len(v) for v in SEEN.values()], 1))


class Moves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk(3 * len(WATCHED))
        self.head = nn.Linear(2 * 128, len(WAYS))

    def forward(self, films: torch.Tensor) -> list[torch.Tensor]:
        """Scores of the directions for N films, N x 7 x 3 x H x W in [0, 1]: the frames in WATCHED."""
        count = films.shape[0]
        frames = small(films.flatten(0, 1)).view(count, len(WATCHED), 3, SIDE, SIDE)
        # The first frame, then what differs from it: where it went, not how it is lit.
        seen = torch.cat((frames[:, :1] * 2 - 1, 4 * (frames[:, 1:] - frames[:, :1])), 1)
        found = self.trunk(seen.flatten(1, 2))
        pooled = torch.cat((found.mean((2, 3)), found.amax((2, 3))), 1)
        return [self.head(pooled)]


def marked(scene: Scene, mark: str) -> torch.Tensor:
    """The watched frames of a scene whose object wears the mark of another motion."""
    box = (0, 0, *scene.size)
    picture = stage(replace(scene, motion="still"), box)
    if (ground := ground_texture(mark)) is not None:
        picture = lay(picture, ground, poses_of(scene, [0]), box)
    return lay(picture, texture(scene.thing, scene.colour, mark), poses_of(scene, list(WATCHED)), box)


def worn(frames: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Soften and add noise, each sometimes: a made film is neither sharp nor clean."""
    if rng.random() < 0.5:
        share = rng.uniform(0.12, 0.5)
        size = (round(frames.shape[-2] * share), round(frames.shape[-1] * share))
        frames = interpolate(frames, size, mode="bilinear", antialias=True)
    if rng.random() < 0.4:
        frames = frames + rng.uniform(0, 0.05) * torch.randn_like(frames)
    return frames


def draw_look(rng: random.Random, train: bool) -> tuple[torch.Tensor, list[int]]:
    scene = draw_scene(rng)
    frame = film(scene, [rng.randrange(FRAMES)])
    frame = small(worn(frame, rng) if train else frame)
    return frame[0], [list(v).index(getattr(scene, kind)) for kind, v in SEEN.items()]


def draw_move(rng: random.Random, train: bool) -> tuple[torch.Tensor, list[int]]:
    scene = draw_scene(rng)
    scene = replace(scene, bucket=rng.uniform(SLOWEST, 255))
    frames = marked(scene, rng.choice(MOTIONS)) if train or rng.random() < 0.5 else film(scene, list(WATCHED))
    frames = small(worn(frames, rng) if train else frames)
    return frames, [WAYS.index(DIRECTIONS[scene.motion])]


JUDGES = {"looks": (Looks, draw_look, 64), "moves": (Moves, draw_move, 16)}


def batch(name: str, rng: random.Random, count: int, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = [JUDGES[name][1](rng, train) for _ in range(count)]
    return torch.stack([d[0] for d in drawn]), torch.tensor([d[1] for d in drawn])


@torch.no_grad()
def accuracy(name: str, model: nn.Module, count: int, seed: int) -> dict[str, float]:
    rng, hits = random.Random(seed), []
    for _ in range(0, count, 50):
        seen, labels = batch(name, rng, 50, train=False)
        hits.append(torch.stack([s.argmax(1) for s in model(seen)], 1) == labels)
    kinds = list(SEEN) if name == "looks" else ["direction"]
    return dict(zip(kinds, torch.cat(hits).float().mean(0).tolist(), strict=True))


def train(name: str, minutes: float, shuffled: bool = False) -> nn.Module:
    torch.manual_seed(6)
    model, size = JUDGES[name][0](), JUDGES[name][2]
    part = f"checker_{name}" + ("_shuffled" if shuffled else "")
    run = Run(part, model, muon(model, 0.01, 2e-3, ("trunk.0.", "head")), minutes, decay=0.99)
    rng = random.Random(6000 + run.step)
    while run.going():
        seen, labels = batch(name, rng, size, train=True)
        if shuffled:
            labels = labels[torch.randperm(len(labels))]
        run.learn(sum(cross_entropy(s, labels[:, i]) for i, s in enumerate(model(seen))))
        if run.due(60):
            run.save(**run.with_average(lambda: accuracy(name, model, 100, 880_001)))
    run.save(**run.with_average(lambda: accuracy(name, model, 100, 880_001)))
    model.load_state_dict(run.average)
    return model.eval()


class Checker:
    """Both judges with their trained weights."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.looks, self.moves = Looks().eval(), Moves().eval()
        for name, model in (("looks", self.looks), ("moves", self.moves)):
            kept = load_file(folder / f"{name}.safetensors")
            model.load_state_dict({k: v.float() for k, v in kept.items()})

    @torch.no_grad()
    def look(self, made: torch.Tensor) -> dict[str, dict[str, float]]:
        """Probabilities of every object, colour and place, the mean over some frames of a film."""
        chosen = made[list(LOOKED_AT)] if len(made) == FRAMES else made
        means = [scores.softmax(1).mean(0).tolist() for scores in self.looks(chosen)]
        return {
            kind: dict(zip(names, mean, strict=True))
            for (kind, names), mean in zip(SEEN.items(), means, strict=True)
        }

    @torch.no_grad()
    def direction(self, made: torch.Tensor) -> str:
        """Name where a film goes; the frames of it, or those in WATCHED alone."""
        watched = made[list(WATCHED)] if len(made) == FRAMES else made
        return WAYS[int(self.moves(watched[None])[0].argmax())]


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--looks", type=float, default=5, help="minutes")
    ask.add_argument("--moves", type=float, default=6, help="minutes")
    ask.add_argument("--shuffled", type=float, default=1, help="minutes for each on shuffled labels")
    ask.add_argument("--films", type=int, default=2000, help="unseen films to be measured on")
    told = ask.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    figures: dict[str, object] = {"films": told.films}
    for name, minutes in (("looks", told.looks), ("moves", told.moves)):
        model = train(name, minutes)
        kept = halves(model.state_dict())
        save_file(kept, FOLDER / f"{name}.safetensors")
        model.load_state_dict({k: v.float() for k, v in kept.items()})
        figures[name] = accuracy(name, model, told.films, 880_002)
        if told.shuffled:
            figures[f"{name} after shuffled labels"] = accuracy(
                name, train(name, told.shuffled, shuffled=True), told.films, 880_002
            )
    print(json.dumps(figures, indent=1))
    (FOLDER / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
