"""One device with a profile's weights on it, making one film at a time."""

import gc
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stillmotion.engine.compiling import Compilation, CompiledSizes
from stillmotion.engine.film import Condition, condition_on, sample_euler, sample_lcm
from stillmotion.engine.loading import combine
from stillmotion.engine.memory import Placement, choose_memory, is_out_of_memory
from stillmotion.engine.pictures import BUCKETS, cover, film_size, native_size, open_picture
from stillmotion.engine.weights import device_name, fingerprint, load_weights, pick_device, pick_dtype
from stillmotion.engine.writing import decoded_chunks, write_film
from stillmotion.errors import DeviceLost, InputRefused, UserError
from stillmotion.profiles import AUTO, MemoryPreset, Part, Profile, Size
from stillmotion.reporting import DENOISE, Report
from stillmotion.types import VIDEO_SIZES, Assignment, Film, FinishFilm, Level, Sampler

WARM_PROMPT = "warm-up"
UNETS: dict[Sampler, Part] = {Sampler.EULER: "unet", Sampler.LCM: "turbo_unet"}


class Engine:
    """Loaded weights; `make` turns an assignment into an MP4."""

    def __init__(
        self,
        profile: Profile,
        folder: Path,
        device: str,
        compilation: Compilation | None = None,
        memory_preset: str = AUTO,
    ) -> None:
        begun = time.perf_counter()
        self.profile = profile
        self.device = device
        self._device = pick_device(device, profile)
        dtype = pick_dtype(self._device, profile)
        torch.set_num_threads(profile.threads)
        torch.backends.cudnn.deterministic = True
        # Float32 is for its range where the rest runs in 16 bits; TF32 has it, and no fewer digits than they.
        torch.backends.cudnn.allow_tf32 = dtype != torch.float32
        if self._device.type == "cuda":
            # What is page-locked or compiled belongs to the current device, 0 unless told.
            torch.cuda.set_device(self._device.index or 0)
        preset = choose_memory(profile, memory_preset, self._device)
        if compilation is not None:
            compilation.prepare(self._device, preset)
        with torch.inference_mode(), self._loading(preset):
            self.weights = load_weights(profile, folder, self._device, dtype, preset)
            self.memory = Placement(self.weights.parts, preset, self._device)
            self._code = compilation.identity() if compilation else "no"
            self._facts = fingerprint(profile, folder, self._device, dtype)
            self.sizes = self._sizes()
            self._compiled = compilation and CompiledSizes(self.weights, compilation, self.sizes)
            self._warm(self.sizes[0])
        mode = f", compiled in mode {compilation.mode}" if compilation else ""
        self.summary = (
            f"{profile.name} on {device} ({device_name(self._device)}, {str(dtype).removeprefix('torch.')}, "
            f"{profile.threads} threads, memory preset {preset.name}{mode}), "
            f"loaded in {time.perf_counter() - begun:.1f} s"
        )

    @property
    def fingerprint(self) -> str:
        """Hash of all that equal bytes depend on besides the request."""
        return self._fingerprint(self.memory.preset, self._code)

    def _fingerprint(self, preset: MemoryPreset, code: str) -> str:
        return combine((self._facts, f"memory {preset}", f"compiled {code}"))

    def make(self, assignment: Assignment, report: Report) -> Film:
        """Make the film and write it to `assignment.output`; same assignment and fingerprint, same bytes."""
        return self.render(assignment, report)()

    def render(self, assignment: Assignment, report: Report) -> FinishFilm:
        """Do all that needs the device; call what is returned, from any thread, to wait for the file.

        A film that does not fit is tried once more in the next smaller memory preset. Raises MemoryError when
        that does not help, DeviceLost when the device is of no more use here.
        """
        preset = self.memory.preset
        smaller = self.profile.smaller_memory(preset)
        try:
            with self._faults():
                return self._render(assignment, report)
        except MemoryError:
            if smaller is None:
                report.log(f"out of memory with preset {preset.name}, the smallest", Level.ERROR)
                raise
            told = f"out of memory with preset {preset.name}; trying once more with {smaller.name}"
            report.log(told, Level.WARN)
        # Past the handler nothing holds what the first try had made.
        self._free()
        return self._render_within(smaller, assignment, report)

    def _render_within(self, preset: MemoryPreset, assignment: Assignment, report: Report) -> FinishFilm:
        """Render in another preset than the engine's own; uncompiled, for its shapes are others."""
        try:
            with (
                torch.compiler.set_stance("force_eager"),
                self._faults(),
                torch.inference_mode(),
                self.memory.under(preset),
            ):
                finish = self._render(assignment, report)
        except MemoryError:
            report.log(f"out of memory with preset {preset.name}, too", Level.ERROR)
            raise
        return lambda: replace(finish(), fingerprint=self._fingerprint(preset, "no"))

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Yield how many sizes are warm and how many there are: at once, and after each further one.

        Uncompiled networks need one size only.
        """
        warm, sizes = 1, self.sizes if self._compiled else self.sizes[:1]
        yield warm, len(sizes)
        for size in sizes[1:]:
            try:
                with self._faults(), torch.inference_mode():
                    self._warm(size)
                warm += 1
            except (UserError, InputRefused, RuntimeError, MemoryError) as error:
                # Films of this size will say so themselves; those of the others can still be made.
                print(f"{size[0]}x{size[1]} could not be warmed: {error}", file=sys.stderr)
                self._free()
            yield warm, len(sizes)

    @contextmanager
    def _faults(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            if isinstance(error, torch.AcceleratorError) or not self._answers():
                # CUDA's errors stick to the process: every later call would fail alike.
                raise DeviceLost(f"{self.device} failed: {str(error).splitlines()[0]}") from error
            raise

    def _render(self, assignment: Assignment, report: Report) -> FinishFilm:
        timings: dict[str, float] = {}
        generator = torch.Generator("cpu").manual_seed(assignment.seed)
        frames = self.profile.frames
        with torch.inference_mode(), ExitStack() as told:
            report.check_cancelled()
            with self._timed("first_frame", timings):
                size, native, picture = self._picture(assignment, generator, report)
            if assignment.picture is None:
                report.log(f"first frame {timings['first_frame']:.2f} s")
            if self._compiled:
                told.enter_context(self._compiled.told(native, report))
            with self._timed("encode", timings):
                condition = self._condition(assignment, picture, generator)
            with self._timed("denoise", timings), self.memory.present(UNETS[assignment.sampler]):
                latents = self._denoise(assignment, condition, generator, report)
            with self._timed("decode", timings), self._core_for_h264(), self.memory.present("vae_decoder"):
                close = write_film(
                    self.weights.codec,
                    latents,
                    path=Path(assignment.output),
                    size=size,
                    fps=assignment.fps,
                    chunk=self.memory.preset.decode_chunk_size,
                    threads=self.profile.threads,
                    report=report,
                )
            report.log(f"decoded {frames} frames {timings['decode']:.2f} s")

        def finish() -> Film:
            seconds = {**timings, "close": close()}
            return Film(width=size[0], height=size[1], frames=frames, timings=seconds)

        return finish

    def _picture(
        self, assignment: Assignment, generator: torch.Generator, report: Report
    ) -> tuple[Size, Size, Tensor]:
        """The film's size, its native size and its first picture at that."""
        given = open_picture(Path(assignment.picture)) if assignment.picture is not None else None
        size = film_size(assignment.width, assignment.height, given)
        native = self._native(size)
        if given is not None:
            picture = cover(given, native)
        else:
            assert assignment.prompt is not None, "an assignment has a picture or a prompt"
            first_frame = self.weights.first_frame
            picture = first_frame.draw(assignment.prompt, native, generator, report, self.memory)
        return size, native, picture.to(self._device)

    def _sizes(self) -> list[Size]:
        """Native sizes that films are expected in: the profile's own, else those with a name."""
        expected = self.profile.native_sizes or (*VIDEO_SIZES.values(), *BUCKETS)
        return list(dict.fromkeys(self._native(size) for size in (self.profile.warm_size, *expected)))

    def _native(self, size: Size) -> Size:
        levels = len(self.weights.unets[Sampler.LCM].config["block_out_channels"])
        return native_size(size, self.profile.native_sizes, self.weights.codec.cell * 2 ** (levels - 1))

    def _condition(self, assignment: Assignment, picture: Tensor, generator: torch.Generator) -> Condition:
        fps = self.profile.condition_fps
        with self.memory.present("image_encoder", "vae_encoder"):
            return condition_on(
                picture,
                clip=self.weights.clip,
                codec=self.weights.codec,
                frames=self.profile.frames,
                fps=fps.turbo if assignment.sampler is Sampler.LCM else fps.hq,
                motion_bucket_id=assignment.motion_bucket_id,
                cond_aug=assignment.cond_aug,
                generator=generator,
            )

    def _denoise(
        self, assignment: Assignment, condition: Condition, generator: torch.Generator, report: Report
    ) -> Tensor:
        unet, numbers = self.weights.unets[assignment.sampler], self.profile.samplers
        if assignment.sampler is Sampler.LCM:
            assert assignment.steps is not None, "the few-step sampler is told its steps"
            steps = assignment.steps
            stages = sample_lcm(unet, condition, numbers.lcm, steps, generator)
        else:
            steps = assignment.steps or numbers.euler.steps
            stages = sample_euler(unet, condition, numbers.euler, steps, generator)
        latents = condition.latents
        for step in range(1, steps + 1):
            begun = time.perf_counter()
            latents = next(stages)
            self._settle()
            report.log(f"step {step}/{steps} ({time.perf_counter() - begun:.2f} s)")
            report.progress(DENOISE, step, steps)
            report.check_cancelled()
        return latents

    def _warm(self, native: Size) -> None:
        """Run each network at a size as films do, so that the first film is as quick as the next."""
        generator = torch.Generator("cpu").manual_seed(0)
        weights, numbers = self.weights, self.profile.samplers
        picture = weights.first_frame.draw(WARM_PROMPT, native, generator, _Silent(), self.memory)
        with self.memory.present("image_encoder", "vae_encoder"):
            condition = condition_on(
                picture.to(self._device),
                clip=weights.clip,
                codec=weights.codec,
                frames=self.profile.frames,
                fps=self.profile.condition_fps.turbo,
                motion_bucket_id=127,
                cond_aug=0,
                generator=generator,
            )
        calls = self._compiled.calls if self._compiled else 1
        latents = condition.latents
        for unet, sampler in {unet: sampler for sampler, unet in weights.unets.items()}.items():
            with self.memory.present(UNETS[sampler]):
                *_, latents = sample_lcm(unet, condition, numbers.lcm, calls, generator)
        if (interval := numbers.euler.reuse_interval) > 1:
            # Its shorter calls, too.
            unet, steps = weights.unets[Sampler.EULER], calls * interval
            with self.memory.present("unet"):
                *_, latents = sample_euler(unet, condition, numbers.euler, steps, generator)
        # One whole chunk and the last, shorter one.
        chunk = self.memory.preset.decode_chunk_size
        short = latents[:, : chunk + self.profile.frames % chunk]
        with self.memory.present("vae_decoder"):
            for _ in range(calls):
                list(decoded_chunks(weights.codec, short, chunk))
        self._settle()

    @contextmanager
    def _loading(self, preset: MemoryPreset) -> Generator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = self.profile.smaller_memory(preset)
            cure = f", or set STILLMOTION_MEMORY_PRESET={smaller.name}" if smaller else ""
            raise UserError(
                f"{self.device} ran out of memory while loading {self.profile.name} with memory preset "
                f"{preset.name}: end what else uses it{cure}. ({str(error).partition(chr(10))[0]})"
            ) from error

    @contextmanager
    def _core_for_h264(self) -> Generator[None]:
        """Decode with a thread less: where all cores decode, the encoder beside them waits.

        Not what is compiled: for another number of threads torch compiles anew.
        """
        threads = self.profile.threads
        torch.set_num_threads(threads if self._compiled else max(1, threads - 1))
        try:
            yield
        finally:
            torch.set_num_threads(self.profile.threads)

    def _free(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Generator[None]:
        begun = time.perf_counter()
        yield
        self._settle()
        timings[stage] = time.perf_counter() - begun

    def _answers(self) -> bool:
        """Whether the device still takes work; cuBLAS, cuDNN and Triton tell of its loss in plain errors."""
        try:
            self._settle()
        except RuntimeError:
            return False
        return True

    def _settle(self) -> None:
        """Wait for the device, so that seconds and cancels mean what they say."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _Silent:
    """A report nobody reads, for the warm-up."""

    def log(self, message: str, level: Level = Level.INFO) -> None: ...

    def progress(self, stage: str, step: int, steps: int) -> None: ...

    def check_cancelled(self) -> None: ...
