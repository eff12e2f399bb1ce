"""Profiles: a named set of weights with the numbers to run them by, read from `presets/*.toml`.

Everything in which one set of weights differs from another is a key here; the engine never asks for a
profile by name. Unknown keys, missing keys and wrong types are refused, naming the file and the key.
"""

import dataclasses
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from stillmotion.errors import UserError, WeightsMissing

PACKAGE = Path(__file__).parent
PRESETS = PACKAGE / "presets"

Dtype = Literal["float32", "bfloat16", "float16"]
Size = tuple[int, int]
Table = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionFps:
    """The frame rate the video UNet is told, whatever the file's own rate is."""

    hq: float
    turbo: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtypes:
    """Number format of the networks by kind of device; the encoding half of the VAE is always float32."""

    cpu: Dtype
    cuda: Dtype
    #: bfloat16 instead of `cpu` where the CPU has instructions for it; elsewhere it is emulated and slow.
    cpu_bf16: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How pictures enter and leave the autoencoder."""

    #: Pixels folded into channels before encoding, and unfolded after decoding (1 = none).
    unshuffle_in: int
    shuffle_out: int
    #: Pixels one latent cell is wide.
    cell: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LcmSampler:
    """Noise levels of the few-step sampler: a Karras ramp of `grid` points, thinned to the asked steps."""

    sigma_min: float
    sigma_max: float
    grid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EulerSampler:
    """Noise levels of the high-quality sampler and its guidance from the first frame to the last."""

    steps: int
    sigma_min: float
    sigma_max: float
    guidance_min: float
    guidance_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Samplers:
    lcm: LcmSampler
    euler: EulerSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFrame:
    """The text-to-image pipeline folder and how it is asked."""

    folder: str
    steps: int
    guidance_scale: float
    #: `latent`: it answers in the film's own latents; `image`: in pixels, through its own autoencoder.
    output: Literal["latent", "image"]
    #: A bare safetensors file in the folder that replaces the pipeline's UNet weights; "" = none.
    unet: str = ""
    #: Sizes it may draw at, the nearest aspect is taken; empty = the film's native size.
    sizes: tuple[Size, ...] = ()
    #: Keys laid over the folder's scheduler config.
    scheduler: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    #: JSON of the words these weights know, relative to the weights folder; "" = they know any.
    vocabulary: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where each network lies inside the weights folder: a folder, or a bare safetensors file."""

    unet: str
    turbo_unet: str
    vae: str
    image_encoder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files of one hub repository and the folder of the weights they belong in."""

    repository: str
    licence: str
    files: tuple[str, ...]
    folder: str = ""
    #: Those of the files whose float32 tensors are kept as float16.
    cast: tuple[str, ...] = ()
    #: The hub wants the licence accepted by a signed-in account first.
    gated: bool = False

    def place(self, name: str) -> str:
        """Where one of its files belongs in the weights folder."""
        return f"{self.folder}/{name}" if self.folder else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One named set of weights and presets = one queue and one pool of runners."""

    name: str
    title: str
    licence: str
    #: The weights ship inside the package; otherwise they lie in DATA/weights/NAME.
    bundled: bool
    needs_cuda: bool
    #: Middle of the weight files' names, as in `diffusion_pytorch_model.fp16.safetensors`; "" = none.
    variant: str
    frames: int
    #: Frames decoded together; part of what equal bytes depend on.
    decode_chunk_size: int
    #: CPU threads of torch, and of the H.264 encoder.
    threads: int
    #: Sizes films are made at before the final resize; empty = the asked size itself.
    native_sizes: tuple[Size, ...]
    #: Film size the networks are run at once while loading, the one most requests ask for.
    warm_size: Size
    condition_fps: ConditionFps
    dtype: Dtypes
    codec: Codec
    samplers: Samplers
    first_frame: FirstFrame
    parts: Parts
    sources: tuple[Source, ...] = ()

    def weights_dir(self, data_dir: Path) -> Path:
        return PACKAGE / "weights" / self.name if self.bundled else data_dir / "weights" / self.name

    def missing_parts(self, data_dir: Path) -> list[str]:
        """Name what is absent from the weights folder; empty when all is there."""
        folder = self.weights_dir(data_dir)
        wanted = [getattr(self.parts, field.name) for field in dataclasses.fields(self.parts)]
        wanted.append(f"{self.first_frame.folder}/model_index.json")
        if self.first_frame.unet:
            wanted.append(f"{self.first_frame.folder}/{self.first_frame.unet}")
        needed = [part if Path(part).suffix else f"{part}/config.json" for part in wanted]
        needed += [source.place(name) for source in self.sources for name in source.files]
        return [part for part in dict.fromkeys(needed) if not (folder / part).is_file()]


def profile_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_profile(name: str) -> Profile:
    """Read a profile by its name."""
    path = PRESETS / f"{name}.toml"
    if name not in profile_names():
        raise UserError(f"There is no profile {name!r}; the profiles are {', '.join(profile_names())}.")
    return parse_profile(path.read_text(encoding="utf-8"), path)


def parse_profile(text: str, source: Path) -> Profile:
    """Read a profile from TOML; `source` is what errors call it."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source}: not valid TOML: {error}.") from error
    profile = _read(Profile, table, source, "")
    if profile.dtype.cpu == "float16":
        raise UserError(
            f"{source}: dtype.cpu is 'float16', which CPUs run about 50 times slower than bfloat16; "
            "use 'float32' or 'bfloat16'."
        )
    return profile


def choose_profile(asked: str, cuda: bool, data_dir: Path) -> tuple[Profile, str]:
    """Pick the profile to run and say why; `auto` prefers big weights that are here and can run."""
    if asked != "auto":
        profile = load_profile(asked)
        if profile.needs_cuda and not cuda:
            raise UserError(
                f"Profile {asked} needs a CUDA device and none is visible; check `nvidia-smi`, "
                "or run `--profile auto`."
            )
        _require_weights(profile, data_dir)
        return profile, "asked for"
    profiles = sorted((load_profile(name) for name in profile_names()), key=lambda profile: profile.bundled)
    reasons: list[str] = []
    for profile in profiles:
        if profile.needs_cuda and not cuda:
            reasons.append(f"{profile.name} needs a CUDA device")
        elif not profile.bundled and profile.missing_parts(data_dir):
            reasons.append(f"{profile.name} has no weights in {profile.weights_dir(data_dir)}")
        else:
            _require_weights(profile, data_dir)
            return profile, "; ".join(reasons) or "its weights and a device for them are here"
    raise UserError(f"No profile can run here: {'; '.join(reasons)}.")


def _require_weights(profile: Profile, data_dir: Path) -> None:
    if missing := profile.missing_parts(data_dir):
        cure = "reinstall the package" if profile.bundled else f"run `stillmotion models pull {profile.name}`"
        raise WeightsMissing(
            f"Profile {profile.name} lacks {', '.join(missing)} in {profile.weights_dir(data_dir)}; {cure}."
        )


def _read(kind: type[T], value: Any, source: Path, key: str) -> T:
    """Turn a TOML value into `kind`: a data class, tuple, mapping, literal or plain type."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise _wrong(source, key, value, f"one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    if origin is tuple:
        return cast(T, _read_list(typing.get_args(kind), value, source, key))
    if origin is not None and issubclass(origin, Mapping):
        return cast(T, {name: _read(str, word, source, f"{key}.{name}") for name, word in value.items()})
    if dataclasses.is_dataclass(kind):
        return cast(T, _read_table(kind, value, source, key))
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, cast(type, accepted)) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(source, key, value, f"of type {kind.__name__}")
    return cast(T, float(value) if kind is float else value)


def _read_list(kinds: tuple[Any, ...], value: Any, source: Path, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(source, key, value, "a list")
    items = cast(list[Any], value)
    if kinds[-1:] == (...,):
        return tuple(_read(kinds[0], item, source, key) for item in items)
    if len(items) != len(kinds):
        raise _wrong(source, key, items, f"a list of {len(kinds)}")
    return tuple(_read(kind, item, source, key) for kind, item in zip(kinds, items, strict=True))


def _read_table(kind: Any, value: Any, source: Path, key: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(source, key, value, "a table")
    table = cast(dict[str, Any], value)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    dotted = {name: f"{key}.{name}" if key else name for name in (*fields, *table)}
    for name in table:
        if name not in fields:
            raise UserError(f"{source}: unknown key {dotted[name]}; known here are {', '.join(fields)}.")
    hints = typing.get_type_hints(kind)
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if name not in table and not optional:
            raise UserError(f"{source}: key {dotted[name]} is missing.")
    return kind(**{name: _read(hints[name], item, source, dotted[name]) for name, item in table.items()})


def _wrong(source: Path, key: str, value: object, wanted: str) -> UserError:
    return UserError(f"{source}: {key} is {value!r}, it must be {wanted}.")


def nearest_size(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """Pick the size whose aspect differs least, as a ratio, from width to height."""
    return min(
        sizes,
        key=lambda size: max(size[0] * height, width * size[1]) / min(size[0] * height, width * size[1]),
    )
