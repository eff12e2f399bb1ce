"""The judge sees movement, not marks; foreign words and pictures are foreign."""

import random
import re
from dataclasses import replace

import pytest
import torch

from training.captions import WORDS, describe
from training.checker import WATCHED, Checker, marked
from training.foreign import foreign_caption, foreign_picture, with_foreign_words
from training.measure import track
from training.render import film
from training.world import Scene

SCENE = Scene("car", "blue", "desert", "right")
KNOWN = {
    word for table in WORDS.values() for said in table.values() for words in said for word in words.split()
}


def test_a_film_with_a_foreign_mark_moves_as_its_motion_says() -> None:
    spots = track(SCENE, marked(SCENE, "fall"))
    assert spots[-1][0] - spots[0][0] > 40
    assert abs(spots[-1][1] - spots[0][1]) < 8


def test_own_mark_gives_the_true_film() -> None:
    for motion in ("right", "take-off", "bounce"):
        scene = replace(SCENE, motion=motion)
        assert torch.allclose(marked(scene, motion), film(scene, list(WATCHED)))


@pytest.mark.parametrize(("motion", "way"), [("rise", "up"), ("left", "left"), ("grow", "grow")])
def test_checker_names_a_true_film_whatever_its_mark(motion: str, way: str) -> None:
    scene = replace(SCENE, motion=motion, bucket=200)
    whole = torch.zeros(25, 3, 288, 512)
    whole[list(WATCHED)] = marked(scene, "fall")
    checker = Checker()
    assert checker.direction(whole) == way
    seen = checker.look(film(scene))
    assert seen["thing"]["car"] > 0.9 and seen["colour"]["blue"] > 0.9 and seen["place"]["desert"] > 0.9


def test_foreign_captions_have_no_known_noun_and_training_never_sees_those_for_judging() -> None:
    rng = random.Random(5)
    taught, held = set[str](), set[str]()
    for _ in range(2000):
        taught |= set(re.findall(r"\w+", foreign_caption(rng, kept_back=False).lower()))
        held |= set(re.findall(r"\w+", foreign_caption(rng).lower()))
    assert not {word for word in (taught | held) & KNOWN if len(word) > 5}  # shorter ones: chance, or joints
    assert "giraffe" in held and "giraffe" not in taught


def test_an_aside_leaves_every_word_of_the_caption_in_its_place() -> None:
    rng = random.Random(6)
    for _ in range(100):
        plain = describe(SCENE, rng).text
        left = iter(with_foreign_words(plain, rng).split(" "))
        assert all(word in left for word in plain.split(" "))


def test_foreign_pictures_differ_and_can_be_had_again() -> None:
    drawn = [foreign_picture(random.Random(seed), 128, 72) for seed in range(12)]
    assert all(p.shape == (3, 72, 128) and 0 <= float(p.min()) <= float(p.max()) <= 1 for p in drawn)
    assert len({float(p.sum()) for p in drawn}) == 12
    assert torch.equal(drawn[7], foreign_picture(random.Random(7), 128, 72))
