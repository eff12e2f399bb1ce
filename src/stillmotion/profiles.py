"""Profiles: a named set of weights with the numbers to run them by, read from `presets/*.toml`.

Everything in which one set of weights differs from another is a key here; the engine never asks for a
profile by name. An owner's `DATA/profiles/NAME.toml` is laid over the preset of that name, key by key.
Unknown keys, missing keys, wrong types and numbers that cannot work are refused, naming the file and the key.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stillmotion.errors import UserError, WeightsMissing
from stillmotion.lockfile import LockedFile, read_lock
from stillmotion.toml_tables import laid_over, parse, read, wrong

PACKAGE = Path(__file__).parent
#: Folder of a data directory in which its owner changes profiles.
OWN = "profiles"
PRESETS = PACKAGE / "presets"
#: What a diffusers pipeline's folder says it is made of.
INDEX = "model_index.json"
#: Instead of a memory preset's name: the first that fits.
AUTO = "auto"
#: What callers may ask for; the sampler's grid must have as many levels.
MOST_LCM_STEPS = 20

Dtype = Literal["float32", "bfloat16", "float16"]
#: What can be on the device or in host memory by itself, in the order a film needs it.
Part = Literal[
    "text_encoder",
    "picture_unet",
    "picture_vae",
    "image_encoder",
    "vae_encoder",
    "unet",
    "turbo_unet",
    "vae_decoder",
]
Size = tuple[int, int]
Scalar = str | int | float | bool


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
    #: float8_e4m3fn in the video UNets' large linear layers, on CUDA devices that multiply it.
    cuda_float8: bool = False


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
    #: Steps from one whole UNet call to the next; those between reuse its deep features (1 = none do).
    reuse_interval: int = 1
    #: Skip connection under which features are reused, 0 = the outermost.
    reuse_branch: int = 0


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
    #: Hub repository the folder is filled from; "" = from those in `sources`, or by hand.
    repository: str = ""
    licence: str = ""
    #: Middle of its weight files' names, for parts that have such files; "" = the profile's.
    variant: str = ""
    #: A bare safetensors file in the folder that replaces the pipeline's UNet weights; "" = none.
    unet: str = ""
    #: Sizes it may draw at, the nearest aspect is taken; empty = the film's native size.
    sizes: tuple[Size, ...] = ()
    #: Keys laid over the folder's scheduler config.
    scheduler: Mapping[str, Scalar] = dataclasses.field(default_factory=dict[str, Scalar])
    #: What else the pipeline's call is given, by its own names.
    arguments: Mapping[str, Scalar] = dataclasses.field(default_factory=dict[str, Scalar])
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
class MemoryPreset:
    """One way to fit the making of a film into a device's memory."""

    name: str
    #: Device memory to be free before anything is loaded, for a film of `warm_size` (docs/performance.md).
    needs_gib: float
    #: Parts that stay on the device; the others wait in host memory and come while their stage runs.
    stay: tuple[Part, ...] = ()
    #: Frames decoded together; 0 = the profile's number.
    decode_chunk_size: int = 0
    #: Frames the video UNet's feed-forwards take at once, a divisor of `frames`; 0 = all of them.
    feed_forward_frames: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files of one hub repository and the folder of the weights they belong in."""

    repository: str
    licence: str
    #: Empty = all that its model_index.json names.
    files: tuple[str, ...] = ()
    folder: str = ""
    #: Those of the files whose float32 tensors are kept as float16.
    cast: tuple[str, ...] = ()

    def place(self, name: str) -> str:
        """Where one of its files belongs in the weights folder."""
        return f"{self.folder}/{name}" if self.folder else name

    def known_files(self, lock: Mapping[str, LockedFile]) -> tuple[str, ...]:
        """Name its files; of a whole pipeline, those the lock knows."""
        if self.files:
            return self.files
        here = self.place("")
        locked = [path for path, file in lock.items() if file.repository == self.repository]
        return tuple(dict.fromkeys((INDEX, *(p[len(here) :] for p in locked if p.startswith(here)))))


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
    #: From most device memory to least.
    memory: tuple[MemoryPreset, ...] = ()

    @property
    def memory_presets(self) -> tuple[MemoryPreset, ...]:
        """The memory presets, complete; a profile without any keeps everything on the device."""
        listed = self.memory or (MemoryPreset(name="whole", needs_gib=0, stay=typing.get_args(Part)),)
        chunk = self.decode_chunk_size
        return tuple(replace(each, decode_chunk_size=each.decode_chunk_size or chunk) for each in listed)

    def choose_memory(self, asked: str, free_gib: float) -> MemoryPreset:
        """Take the memory preset asked for by name or, for AUTO, the first that fits."""
        presets = self.memory_presets
        if asked == AUTO:
            for preset in presets:
                if preset.needs_gib <= free_gib:
                    return preset
            raise UserError(
                f"Profile {self.name} needs {presets[-1].needs_gib:g} GiB of free device memory and "
                f"{free_gib:.1f} are there; end what else uses the device, or try all the same with "
                f"STILLMOTION_MEMORY_PRESET={presets[-1].name}."
            )
        for preset in presets:
            if preset.name == asked:
                return preset
        raise UserError(
            f"Profile {self.name} has no memory preset {asked!r}; set STILLMOTION_MEMORY_PRESET to "
            f"{', '.join(preset.name for preset in presets)} or {AUTO}."
        )

    def smaller_memory(self, preset: MemoryPreset) -> MemoryPreset | None:
        """The memory preset after this one; None after the smallest."""
        presets = self.memory_presets
        return next(iter(presets[presets.index(preset) + 1 :]), None)

    def weights_dir(self, data_dir: Path) -> Path:
        return PACKAGE / "weights" / self.name if self.bundled else data_dir / "weights" / self.name

    def variant_in(self, folder: str) -> str:
        """Middle of the weight files' names in one folder of the weights."""
        first = self.first_frame
        return (folder == first.folder and first.variant) or self.variant

    def missing_parts(self, data_dir: Path) -> list[str]:
        """Name what is absent from the weights folder; empty when all is there."""
        folder = self.weights_dir(data_dir)
        wanted = [getattr(self.parts, field.name) for field in dataclasses.fields(self.parts)]
        wanted.append(f"{self.first_frame.folder}/{INDEX}")
        if self.first_frame.unet:
            wanted.append(f"{self.first_frame.folder}/{self.first_frame.unet}")
        needed = [part if Path(part).suffix else f"{part}/config.json" for part in wanted]
        lock = read_lock(folder)
        needed += [source.place(name) for source in self.sources for name in source.known_files(lock)]
        return [part for part in dict.fromkeys(needed) if not (folder / part).is_file()]


def profile_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def own_profile(name: str, data_dir: Path) -> Path:
    """Where the owner of a data directory changes a profile."""
    return data_dir / OWN / f"{name}.toml"


def load_profile(name: str, data_dir: Path | None = None) -> Profile:
    """Read a profile by its name, with the owner's changes in the data directory."""
    path = PRESETS / f"{name}.toml"
    if name not in profile_names():
        raise UserError(f"There is no profile {name!r}; the profiles are {', '.join(profile_names())}.")
    preset = path.read_text(encoding="utf-8")
    own = own_profile(name, data_dir) if data_dir else None
    if own is None or not own.is_file():
        return parse_profile(preset, path)
    try:
        changes = own.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{own} cannot be read: {error}.") from error
    return change_profile(preset, changes, own)


def parse_profile(text: str, source: Path) -> Profile:
    """Read a profile from TOML; `source` is what errors call it."""
    return _checked(read(Profile, parse(text, source), source, ""), source)


def change_profile(preset: str, changes: str, source: Path) -> Profile:
    """Read a profile from TOML with the tables of `changes` laid over it; `source` is where these stand."""
    table = parse(changes, source)
    if "name" in table:
        raise UserError(
            f"{source}: name cannot be changed; the file's own name says which profile it is for."
        )
    base, first = parse(preset, source), table.get("first_frame")
    if isinstance(first, dict) and "repository" in first:
        # Another pipeline: none of the numbers of the preset's hold for it.
        base = {key: value for key, value in base.items() if key != "first_frame"}
    return _checked(read(Profile, laid_over(base, table), source, ""), source)


def _checked(profile: Profile, source: Path) -> Profile:
    """Refuse numbers no film can be made by."""
    if profile.dtype.cpu == "float16":
        raise UserError(
            f"{source}: dtype.cpu is 'float16', which CPUs run about 50 times slower than bfloat16; "
            "use 'float32' or 'bfloat16'."
        )
    if profile.dtype.cuda_float8 and profile.dtype.cuda != "bfloat16":
        raise wrong(source, "dtype.cuda", profile.dtype.cuda, "'bfloat16' for dtype.cuda_float8")
    if profile.samplers.euler.reuse_branch < 0:
        raise wrong(source, "samplers.euler.reuse_branch", profile.samplers.euler.reuse_branch, "at least 0")
    counts = {
        "frames": profile.frames,
        "decode_chunk_size": profile.decode_chunk_size,
        "threads": profile.threads,
        "first_frame.steps": profile.first_frame.steps,
        "samplers.euler.steps": profile.samplers.euler.steps,
        "samplers.euler.reuse_interval": profile.samplers.euler.reuse_interval,
        "codec.unshuffle_in": profile.codec.unshuffle_in,
        "codec.shuffle_out": profile.codec.shuffle_out,
        "codec.cell": profile.codec.cell,
        "warm_size": min(profile.warm_size),
    }
    for key, count in counts.items():
        if count < 1:
            raise wrong(source, key, count, "at least 1")
    if profile.samplers.lcm.grid < MOST_LCM_STEPS:
        raise wrong(source, "samplers.lcm.grid", profile.samplers.lcm.grid, f"at least {MOST_LCM_STEPS}")
    for name, sampler in (("lcm", profile.samplers.lcm), ("euler", profile.samplers.euler)):
        low, high = sampler.sigma_min, sampler.sigma_max
        if not 0 < low < high:
            raise wrong(source, f"samplers.{name}.sigma_min", low, f"above 0 and below sigma_max, {high:g}")
    cell = profile.codec.cell
    for size in profile.native_sizes:
        if min(size) < cell or any(side % cell for side in size):
            raise wrong(source, "native_sizes", list(size), f"two positive multiples of codec.cell, {cell}")
    for size in profile.first_frame.sizes:
        if min(size) < 8 or any(side % 8 for side in size):
            raise wrong(source, "first_frame.sizes", list(size), "two positive multiples of 8")
    _check_memory(profile, source)
    _check_places(profile, source)
    return replace(profile, sources=_used_sources(profile, source))


def _used_sources(profile: Profile, source: Path) -> tuple[Source, ...]:
    """Leave out sources of folders in which no part lies; add the one of the first frame's repository."""
    first = profile.first_frame
    places = [first.folder, *(getattr(profile.parts, field.name) for field in dataclasses.fields(Parts))]
    used = [
        each for each in profile.sources if any(f"{place}/".startswith(each.place("")) for place in places)
    ]
    if not first.repository:
        return tuple(used)
    if not first.folder or any(each.folder == first.folder for each in used):
        wanted = "a folder that nothing else comes into"
        raise wrong(source, "first_frame.folder", first.folder, wanted)
    licence = first.licence or f"see the page of {first.repository}"
    return (*used, Source(repository=first.repository, licence=licence, folder=first.folder))


def _check_memory(profile: Profile, source: Path) -> None:
    names = [preset.name for preset in profile.memory]
    if len(set(names)) < len(names) or AUTO in names:
        raise wrong(source, "memory.name", ", ".join(names), f"another in each preset, and never {AUTO}")
    for preset in profile.memory:
        if preset.decode_chunk_size < 0:
            raise wrong(source, "memory.decode_chunk_size", preset.decode_chunk_size, "at least 0")
        frames = preset.feed_forward_frames
        if frames < 0 or (frames and profile.frames % frames):
            wanted = f"0 or a divisor of frames, {profile.frames}"
            raise wrong(source, "memory.feed_forward_frames", frames, wanted)


def _check_places(profile: Profile, source: Path) -> None:
    """Refuse paths out of the weights folder: what lies there is neither verified nor in the fingerprint."""
    first = profile.first_frame
    places = [
        *((f"first_frame.{key}", getattr(first, key)) for key in ("folder", "unet", "vocabulary")),
        *((f"parts.{field.name}", getattr(profile.parts, field.name)) for field in dataclasses.fields(Parts)),
        *(("sources.files", each.place(name)) for each in profile.sources for name in ("", *each.files)),
    ]
    for key, place in places:
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise wrong(source, key, place, "a path inside the weights folder, where a link may lead out")


def choose_profile(asked: str, cuda: bool, data_dir: Path) -> tuple[Profile, str]:
    """Pick the profile to run and say why; `auto` prefers big weights that are here and can run."""
    names = profile_names()
    for stray in own_profile("*", data_dir).parent.glob("*.toml"):
        if stray.stem not in names:
            raise UserError(f"{stray} changes no profile; name it after one of {', '.join(names)}.")
    profile, why = _choose(asked, cuda, data_dir)
    own = own_profile(profile.name, data_dir)
    return profile, f"{why}; changed by {own}" if own.is_file() else why


def _choose(asked: str, cuda: bool, data_dir: Path) -> tuple[Profile, str]:
    if asked != "auto":
        profile = load_profile(asked, data_dir)
        if profile.needs_cuda and not cuda:
            raise UserError(
                f"Profile {asked} needs a CUDA device and none is visible; check `nvidia-smi`, "
                "or run `--profile auto`."
            )
        _require_weights(profile, data_dir)
        return profile, "asked for"
    known = (load_profile(name, data_dir) for name in profile_names())
    profiles = sorted(known, key=lambda profile: profile.bundled)
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


def nearest_size(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """Pick the size whose aspect differs least, as a ratio, from width to height."""
    return min(
        sizes,
        key=lambda size: max(size[0] * height, width * size[1]) / min(size[0] * height, width * size[1]),
    )
