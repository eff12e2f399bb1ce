"""Captions name what they say they name."""

import random

from training.captions import KINDS, WORDS, Caption, describe, shown, target
from training.world import Scene, draw_scene

TABLES = dict(zip(KINDS, WORDS.values(), strict=True))


def test_named_attributes_appear_in_the_text() -> None:
    rng = random.Random(4)
    for _ in range(300):
        scene = draw_scene(rng)
        caption = describe(scene, rng)
        for kind in caption.named:
            said = TABLES[kind][getattr(scene, kind)]
            assert any(words in caption.text.lower() for words in said), caption.text


def test_every_value_has_several_wordings() -> None:
    for kind, values in KINDS.items():
        assert set(TABLES[kind]) == set(values)
        assert all(len(set(TABLES[kind][value])) >= 2 for value in values)


def test_attributes_left_out_get_the_class_after_the_last() -> None:
    scene = Scene("rocket", "red", "meadow", "take-off")
    caption = describe(scene, random.Random(1), leave_out=1.1)
    assert caption.named == frozenset()
    assert target(scene, caption) == [len(values) for values in KINDS.values()]


def test_what_a_caption_leaves_out_is_shown_as_usual() -> None:
    scene = Scene("rocket", "green", "sea", "left")
    silent = Caption("a rocket", frozenset({"thing"}))
    assert shown(scene, silent) == Scene("rocket", "red", "meadow", "take-off")
    told = Caption("a green rocket that moves left by the sea", frozenset(KINDS))
    assert shown(scene, told) == scene
