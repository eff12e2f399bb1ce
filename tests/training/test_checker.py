"""The judge sees movement, not marks; foreign words are foreign; intervals are what they say."""

import random
import re
from dataclasses import replace

import pytest
import torch

from training.captions import WORDS, describe
from training.checker import WATCHED, WAYS, Checker, marked
from training.foreign import foreign_caption, with_foreign_words
from training.gates import GATES, Estimate, Gate, mean, ratio, share
from training.measure import track
from training.render import film
from training.trials import PARTS
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


def test_intervals_are_wide_for_few_trials_and_narrow_for_many() -> None:
    few, many = ([{"hit": i % 20 != 0} for i in range(n)] for n in (20, 400))
    assert share("hit")(few).low < 0.8 < 0.92 < share("hit")(many).low < 0.95
    pairs = [{"a": 2.0 + i % 3, "b": 1.0} for i in range(99)]
    assert mean("a", "b")(pairs).value == pytest.approx(2.0)
    assert 2.8 < ratio("a", "b")(pairs).low < 3 < ratio("a", "b")(pairs).high < 3.2


def test_a_ceiling_is_held_by_the_upper_end() -> None:
    floor, ceiling = (Gate("g", "picture", mean("x"), 1.5, "", under) for under in (False, True))
    assert not floor.passes(Estimate(1.6, 1.4, 1.8)) and floor.passes(Estimate(1.7, 1.6, 1.8))
    assert floor.verdict(Estimate(1.6, 1.4, 1.8)) == "not yet shown"
    assert not ceiling.passes(Estimate(1.4, 1.2, 1.6)) and ceiling.passes(Estimate(1.3, 1.2, 1.4))


def test_every_gate_has_its_trials() -> None:
    assert {gate.part for gate in GATES} == set(PARTS)
    assert len(WAYS) == 7
