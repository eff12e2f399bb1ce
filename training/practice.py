"""What the film model does badly comes more often: scenes are drawn by the errors of their kind."""

import random
from collections.abc import Iterable

from training.world import Scene, draw_scene

KINDS = ("motion", "thing", "colour", "place", "size")
#: A kind's error is the mean of about so many of its last clips.
MEMORY = 50


class Practice:
    def __init__(self, share: float) -> None:
        #: Of the scenes, so many are the hardest of three draws.
        self.share = share
        self.errors: dict[object, float] = {}

    def draw(self, rng: random.Random, size: tuple[int, int]) -> Scene:
        drawn = [draw_scene(rng, size) for _ in range(3 if rng.random() < self.share else 1)]
        return max(drawn, key=self.trouble)

    def trouble(self, scene: Scene) -> float:
        """How much worse than others scenes of this kind went; of independent kinds, the product."""
        found = 1.0
        for kind in KINDS:
            found *= self.errors.get(getattr(scene, kind), 1.0)
        return found

    def note(self, outcomes: Iterable[tuple[Scene, float]]) -> None:
        for scene, error in outcomes:
            for kind in KINDS:
                name = getattr(scene, kind)
                before = self.errors.get(name, error)
                self.errors[name] = before + (error - before) / MEMORY
