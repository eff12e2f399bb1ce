"""Train the text tower: `python -m training.train_text`.

Four linear heads name object, colour, place and motion, read at the end mark and at a random place in the
padding after it, so that every padding token carries the whole sentence to the picture model.
"""

import random
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from training import text
from training.captions import KINDS, Caption, describe, target
from training.foreign import foreign_caption, with_foreign_words
from training.loop import STATE, WEIGHTS, Run, begin, muon, questions
from training.world import Scene, draw_scene

FOLDER = STATE / "text"
COUNTS = [len(values) + 1 for values in KINDS.values()]


class Tower(nn.Module):
    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model = model
        self.embed_heads = nn.Linear(width, sum(COUNTS))

    @property
    def device(self) -> torch.device:
        return self.embed_heads.weight.device

    def heads(self, features: torch.Tensor) -> list[torch.Tensor]:
        return list(self.embed_heads(features).split(COUNTS, -1))


def draw_caption(scene: Scene, rng: random.Random) -> Caption:
    """Most often a caption of the vocabulary alone; some have foreign words, some nothing else."""
    kind = rng.random()
    if kind < 0.1:
        return Caption(foreign_caption(rng, kept_back=False), frozenset())
    caption = describe(scene, rng, rng.choice((0.0, 0.12, 0.5)))
    return replace(caption, text=with_foreign_words(caption.text, rng)) if kind < 0.25 else caption


def batch(rng: random.Random, tokenizer: text.CLIPTokenizer, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    scenes = [draw_scene(rng) for _ in range(size)]
    captions = [draw_caption(s, rng) for s in scenes]
    labels = torch.tensor([target(s, c) for s, c in zip(scenes, captions, strict=True)])
    return text.tokens(tokenizer, [c.text for c in captions]), labels


def reads(tower: Tower, ids: torch.Tensor, end: int, rng: random.Random) -> list[list[torch.Tensor]]:
    hidden = tower.model(ids).last_hidden_state
    first_end = (ids == end).int().argmax(1)
    spots = [rng.randint(e, ids.shape[1] - 1) for e in first_end.tolist()]
    anywhere, rows = torch.tensor([spots, list(range(len(ids)))], device=ids.device)
    return [tower.heads(hidden[rows, spot]) for spot in (first_end, anywhere)]


def accuracy(tower: Tower, tokenizer: text.CLIPTokenizer) -> dict[str, float]:
    rng = random.Random(990_002)
    ids, labels = batch(rng, tokenizer, 1000)
    ids, labels = ids.to(tower.device), labels.to(tower.device)
    found = reads(tower, ids, tokenizer.eos_token_id, rng)[0]
    return {
        kind: float((scores.argmax(1) == labels[:, i]).float().mean())
        for i, (kind, scores) in enumerate(zip(KINDS, found, strict=True))
    }


def moved(tower: Tower, kept: Tower, ids: torch.Tensor) -> torch.Tensor:
    """How far the tower has moved from where the first-frame model learned to read it."""
    with torch.no_grad():
        before = kept.model(ids).last_hidden_state
    return (tower.model(ids).last_hidden_state - before).square().mean()


def astray(tower: Tower, kept: Tower, tokenizer: text.CLIPTokenizer, rng: random.Random) -> torch.Tensor:
    """How far captions with foreign words end from where those without ended, which can be drawn.

    Of a wholly foreign one nothing is left but "something".
    """
    plain = [describe(draw_scene(rng), rng).text for _ in range(16)]
    said = [with_foreign_words(words, rng) for words in plain]
    said += [foreign_caption(rng, kept_back=False) for _ in range(16)]
    ids, without = (
        text.tokens(tokenizer, texts).to(tower.device) for texts in (said, plain + ["something"] * 16)
    )
    padding = ((ids == tokenizer.eos_token_id) & (without == tokenizer.eos_token_id))[..., None]
    with torch.no_grad():
        wanted = kept.model(without).last_hidden_state
    return ((tower.model(ids).last_hidden_state - wanted).square() * padding).mean()


def loss_of(tower: Tower, tokenizer: text.CLIPTokenizer, rng: random.Random) -> torch.Tensor:
    ids, labels = (drawn.to(tower.device) for drawn in batch(rng, tokenizer, 64))
    both = reads(tower, ids, tokenizer.eos_token_id, rng)
    return sum(cross_entropy(s, labels[:, i]) for found in both for i, s in enumerate(found))


def drift_of(tower: Tower, kept: Tower, tokenizer: text.CLIPTokenizer, rng: random.Random) -> torch.Tensor:
    plain = text.tokens(tokenizer, [describe(draw_scene(rng), rng).text for _ in range(32)])
    return moved(tower, kept, plain.to(tower.device)) + astray(tower, kept, tokenizer, rng)


def main() -> None:
    ask = questions(7)
    ask.add_argument("--anchor", type=float, default=0.0, help="hold what known captions say this firmly")
    told = ask.parse_args()
    device = begin(told, 2)
    if not FOLDER.exists():
        shipped = WEIGHTS / "text_to_image" / "tokenizer"
        found = text.CLIPTokenizer.from_pretrained(shipped) if told.from_shipped else text.grow_tokenizer()
        found.save_pretrained(FOLDER / "tokenizer")
    tokenizer = text.CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    tower = Tower(text.build(tokenizer), text.HIDDEN).to(device)
    run = Run("text", tower, muon(tower, 0.01, 2e-3), told.minutes, told.cooldown, decay=0.99)
    if told.from_shipped:
        run.begin_from(WEIGHTS / "text_to_image" / "text_encoder" / "model.safetensors", "model.")
    rng = random.Random(2000 + run.step)
    kept = deepcopy(tower).eval()
    kept.load_state_dict(run.average)
    while run.going():
        loss = loss_of(tower, tokenizer, rng)
        if told.anchor:
            loss = loss + told.anchor * drift_of(tower, kept, tokenizer, rng)
        run.learn(loss)
        if run.due(60):
            run.save(**run.with_average(lambda: accuracy(tower, tokenizer)))
    run.save(**run.with_average(lambda: accuracy(tower, tokenizer)))
    tower.load_state_dict(run.average)
    tower.model.save_pretrained(FOLDER / "text_encoder")


if __name__ == "__main__":
    main()
