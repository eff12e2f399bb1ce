"""What is offered: ids, defaults, ranges, and what a runner is told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from stillmotion.endpoints import ENDPOINTS
from stillmotion.types import VIDEO_SIZES, Bases, Request, Sampler, State

TEXT = "fal-ai/fast-svd-lcm/text-to-video"
TURBO = "fal-ai/fast-svd-lcm"
HQ = "fal-ai/stable-video"


def request(endpoint: str, values: dict[str, object]) -> Request:
    return Request(
        id="r",
        profile="pocket",
        endpoint=endpoint,
        key_id="k",
        input=values,
        picture=None,
        bases=Bases(queue="q", files="f"),
        state=State.RUNNING,
        ord=1,
        attempt=2,
        crashes=0,
        attached=False,
        created=0,
    )


def test_the_three_endpoints_with_fals_ids_apps_and_property_order() -> None:
    assert {
        endpoint.id: (endpoint.app, endpoint.sampler, endpoint.category) for endpoint in ENDPOINTS.values()
    } == {
        TEXT: ("fal-ai/fast-svd-lcm", Sampler.LCM, "text-to-video"),
        TURBO: ("fal-ai/fast-svd-lcm", Sampler.LCM, "image-to-video"),
        HQ: ("fal-ai/stable-video", Sampler.EULER, "image-to-video"),
    }
    assert list(ENDPOINTS[TEXT].Input.model_fields) == [
        "prompt",
        "motion_bucket_id",
        "cond_aug",
        "seed",
        "steps",
        "fps",
        "video_size",
    ]
    assert list(ENDPOINTS[HQ].Input.model_fields) == [
        "image_url",
        "seed",
        "motion_bucket_id",
        "cond_aug",
        "fps",
    ]


@pytest.mark.parametrize("endpoint", [TURBO, HQ])
def test_defaults_of_picture_endpoints(endpoint: str) -> None:
    settled = ENDPOINTS[endpoint].settle({"image_url": "https://example.com/a.png", "seed": 1})
    expected = {"motion_bucket_id": 127, "cond_aug": 0.02, "seed": 1}
    expected |= {"fps": 25} if endpoint == HQ else {"fps": 10, "steps": 4}
    assert settled.values == expected
    assert settled.image_url == "https://example.com/a.png"


@pytest.mark.parametrize(("endpoint", "low", "high"), [(TEXT, 1, 25), (TURBO, 1, 25), (HQ, 10, 100)])
def test_frame_rates(endpoint: str, low: int, high: int) -> None:
    offered = ENDPOINTS[endpoint]
    for fps in (low, high):
        assert offered.settle({**offered.example, "fps": fps}).values["fps"] == fps
    for fps in (low - 1, high + 1):
        with pytest.raises(ValidationError):
            offered.settle({**offered.example, "fps": fps})


def test_every_preset_is_the_size_it_names() -> None:
    for name, (width, height) in VIDEO_SIZES.items():
        settled = ENDPOINTS[TEXT].settle({"prompt": "x", "video_size": name})
        assert settled.values["video_size"] == {"width": width, "height": height}
    assert VIDEO_SIZES["landscape_16_9"] == (1024, 576)


def test_drawn_seeds_are_exact_in_javascript_and_differ() -> None:
    seeds = {ENDPOINTS[TEXT].settle({"prompt": "x"}).values["seed"] for _ in range(50)}
    assert len(seeds) == 50 and max(seeds) < 2**53


def test_a_given_seed_is_kept_zero_too() -> None:
    assert ENDPOINTS[TEXT].settle({"prompt": "x", "seed": 0}).values["seed"] == 0


def test_every_example_is_a_valid_input() -> None:
    for endpoint in ENDPOINTS.values():
        assert endpoint.settle(endpoint.example)
        assert len({"prompt", "image_url"} & endpoint.Input.model_fields.keys()) == 1


def test_every_field_says_what_it_is_and_its_schema_names_its_bounds() -> None:
    for endpoint in ENDPOINTS.values():
        schema = endpoint.Input.model_json_schema()
        for name, field in schema["properties"].items():
            forms = [field, *field.get("anyOf", [])]
            assert any("description" in form for form in forms), name
            if name not in ("prompt", "image_url", "video_size"):
                assert any("minimum" in form and "maximum" in form for form in forms), name
    size = ENDPOINTS[TEXT].Input.model_json_schema()["properties"]["video_size"]
    assert size["default"] == "landscape_16_9"
    assert {"enum": list(VIDEO_SIZES), "type": "string"} in size["anyOf"]


def test_an_assignment_tells_a_runner_all_it_may_know() -> None:
    motion = {"motion_bucket_id": 40, "cond_aug": 0.5}
    text = ENDPOINTS[TEXT].settle({"prompt": "a boat", "seed": 5, "video_size": {"width": 320}, **motion})
    told = ENDPOINTS[TEXT].assignment(request(TEXT, dict(text.values)), None, Path("/x/film.mp4"))
    assert (told.prompt, told.width, told.height, told.steps, told.fps) == ("a boat", 320, 512, 4, 10)
    assert (told.picture, told.output, told.seed, told.attempt) == (None, "/x/film.mp4", 5, 2)
    assert {"motion_bucket_id": told.motion_bucket_id, "cond_aug": told.cond_aug} == motion
    picture = ENDPOINTS[HQ].settle({"image_url": "https://example.com/a.png"})
    told = ENDPOINTS[HQ].assignment(request(HQ, dict(picture.values)), Path("/x/in.png"), Path("/x/f.mp4"))
    assert (told.prompt, told.width, told.height, told.steps) == (None, None, None, None)
    assert (told.picture, told.sampler, told.fps) == ("/x/in.png", Sampler.EULER, 25)
