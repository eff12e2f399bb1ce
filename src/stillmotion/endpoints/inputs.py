"""What callers may send and what they get: one model per endpoint, the one source of ranges and defaults.

Numbers are parsed as pydantic does in lax mode ("4" and 4.0 are 4); booleans, NaN and infinities are
refused. The descriptions are shown to users by the schema and the playground.
"""

from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError

from stillmotion.types import VIDEO_SIZES

PROMPT_CHARACTERS = 4096
SMALLEST_SIDE = 256
LARGEST_SIDE = 1280


def _no_boolean_integer(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _no_boolean_float(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


def _storable(value: str) -> str:
    # PostgreSQL text holds no NUL, UTF-8 no lone surrogate; neither means anything in a prompt or a URL.
    # Both ways of looking are quick: a picture in a data URI is 30 million characters.
    try:
        value.encode()
        broken = "\x00" in value
    except UnicodeEncodeError:
        broken = True
    if broken:
        raise PydanticCustomError(
            "value_error", "Text may not contain the NUL character or lone surrogates (broken UTF-16)"
        )
    return value


def _visible(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError(
            "sequence_too_short", "The prompt is empty; say what should be seen", {"min_length": 1}
        )
    return value


def _size_of_preset(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in VIDEO_SIZES:
        raise PydanticCustomError(
            "one_of",
            "Input should be one of {expected}, or an object with width and height",
            {"expected": list(VIDEO_SIZES)},
        )
    width, height = VIDEO_SIZES[value]
    return {"width": width, "height": height}


class _PresetNames:
    """Adds the preset names to the JSON schema of a size, which itself knows only width and height."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(core_schema), {"enum": list(VIDEO_SIZES), "type": "string"}]}


_WHOLE = BeforeValidator(_no_boolean_integer)
_REAL = BeforeValidator(_no_boolean_float)

_Side = Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=2), _WHOLE]


class ImageSize(BaseModel):
    """Width and height of the film in pixels, both even."""

    width: _Side = Field(512, description="Width of the film in pixels.")
    height: _Side = Field(512, description="Height of the film in pixels.")


# Bounds stand before the validators: so pydantic's core checks them and names them in its own words.
Prompt = Annotated[
    str,
    Field(max_length=PROMPT_CHARACTERS, description="What the film should show."),
    AfterValidator(_storable),
    AfterValidator(_visible),
]
ImageUrl = Annotated[
    str,
    Field(description="The picture to set in motion: an http(s) URL or a base64 data URI."),
    AfterValidator(_storable),
]
MotionBucketId = Annotated[
    int,
    Field(ge=1, le=255, description="How much motion the film has: higher numbers move more."),
    _WHOLE,
]
CondAug = Annotated[
    float,
    AllowInfNan(False),
    Field(
        ge=0,
        le=10,
        description="Noise put on the first picture: more of it frees the motion and loosens the likeness.",
    ),
    _REAL,
]
Seed = Annotated[
    int,
    Field(
        ge=0,
        le=2**63 - 1,
        description="Start of the random numbers: the same seed and input give the same film.",
    ),
    _WHOLE,
]
Steps = Annotated[
    int,
    Field(ge=1, le=20, description="Denoising steps: more are slower and usually cleaner."),
    _WHOLE,
]
_FPS = "Frames per second of the film: its 25 frames last 25 / fps seconds."
TurboFps = Annotated[int, Field(ge=1, le=25, description=_FPS), _WHOLE]
Fps = Annotated[int, Field(ge=10, le=100, description=_FPS), _WHOLE]
VideoSize = Annotated[
    ImageSize,
    BeforeValidator(_size_of_preset),
    _PresetNames(),
    Field(
        description=(
            f"A named size, or width and height: even numbers from {SMALLEST_SIDE} to {LARGEST_SIDE}."
        )
    ),
]


class _Input(BaseModel):
    # fal's apps ignore fields they do not know; clients rely on it.
    model_config = ConfigDict(extra="ignore", validate_default=True)


class FastSvdLcmTextToVideoInput(_Input):
    prompt: Prompt = Field(examples=["A rocket flying that is about to take off"])
    motion_bucket_id: MotionBucketId = 127
    cond_aug: CondAug = 0.02
    seed: Seed | None = None
    steps: Steps = 4
    fps: TurboFps = 10
    video_size: VideoSize = Field(cast(Any, "landscape_16_9"), examples=["landscape_16_9"])


class FastSvdLcmInput(_Input):
    image_url: ImageUrl = Field(
        examples=["https://storage.googleapis.com/falserverless/model_tests/svd/rocket.png"]
    )
    motion_bucket_id: MotionBucketId = 127
    cond_aug: CondAug = 0.02
    seed: Seed | None = None
    steps: Steps = 4
    fps: TurboFps = 10


class StableVideoInput(_Input):
    image_url: ImageUrl = Field(
        examples=["https://storage.googleapis.com/falserverless/model_tests/svd/rocket.png"]
    )
    seed: Seed | None = None
    motion_bucket_id: MotionBucketId = 127
    cond_aug: CondAug = 0.02
    fps: Fps = 25


class File(BaseModel):
    url: str = Field(description="Where the file can be downloaded, without a key.")
    content_type: str = Field(description="Its media type.", examples=["video/mp4"])
    file_name: str = Field(description="Its name.", examples=["lantern.mp4"])
    file_size: int = Field(description="Its size in bytes.")


class VideoOutput(BaseModel):
    """What every endpoint answers."""

    video: File = Field(description="The film.")
    seed: int = Field(description="The seed it was made with: the given one, else the drawn one.")


def given_fields(values: BaseModel) -> dict[str, Any]:
    """Return the validated values as plain JSON data, without the picture, which is kept apart."""
    return values.model_dump(mode="json", exclude={"image_url"})
