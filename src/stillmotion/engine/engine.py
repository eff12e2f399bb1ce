"""One device with a profile's weights on it, making one film at a time."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from stillmotion.engine.film import Condition, condition_on, sample_euler, sample_lcm
from stillmotion.engine.pictures import cover, film_size, native_size, open_picture
from stillmotion.engine.weights import device_name, fingerprint, load_weights, pick_device, pick_dtype
from stillmotion.engine.writing import decoded_chunks, write_film
from stillmotion.errors import DeviceLost
from stillmotion.profiles import Profile, Size
from stillmotion.reporting import Report
from stillmotion.types import Assignment, Film, Level, Sampler

WARM_PROMPT = "warm-up"
#: What torch's allocator says in a plain RuntimeError when the host's memory does not suffice.
CPU_MEMORY = "can't allocate memory"


class Engine:
    """Loaded weights; `make` turns an assignment into an MP4."""

    def __init__(self, profile: Profile, folder: Path, device: str) -> None:
        begun = time.perf_counter()
        self.profile = profile
        self.device = device
        self._device = pick_device(device, profile)
        dtype = pick_dtype(self._device, profile)
        torch.set_num_threads(profile.threads)
        torch.backends.cudnn.deterministic = True
        with torch.inference_mode():
            self.weights = load_weights(profile, folder, self._device, dtype)
            self.fingerprint = fingerprint(profile, folder, self._device, dtype)
            self._warm()
        self.summary = (
            f"{profile.name} on {device} ({device_name(self._device)}, {str(dtype).removeprefix('torch.')}, "
            f"{profile.threads} threads), loaded in {time.perf_counter() - begun:.1f} s"
        )

    def make(self, assignment: Assignment, report: Report) -> Film:
        """Make the film and write it to `assignment.output`; same assignment and fingerprint, same bytes.

        Raises MemoryError for a film that does not fit, DeviceLost when the device is of no more use here.
        """
        try:
            return self._make(assignment, report)
        except torch.AcceleratorError as error:
            # CUDA's errors stick to the process: every later call would fail alike.
            raise DeviceLost(f"{self.device} failed: {str(error).splitlines()[0]}") from error
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or CPU_MEMORY in str(error):
                raise MemoryError(str(error)) from error
            raise

    def _make(self, assignment: Assignment, report: Report) -> Film:
        timings: dict[str, float] = {}
        generator = torch.Generator("cpu").manual_seed(assignment.seed)
        frames = self.profile.frames
        with torch.inference_mode():
            report.check_cancelled()
            with self._timed("first_frame", timings):
                size, picture = self._picture(assignment, generator, report)
            if assignment.picture is None:
                report.log(f"first frame {timings['first_frame']:.2f} s")
            with self._timed("encode", timings):
                condition = self._condition(assignment, picture, generator)
            with self._timed("denoise", timings):
                latents = self._denoise(assignment, condition, generator, report)
            with self._timed("decode", timings):
                timings["close"] = write_film(
                    self.weights.codec,
                    latents,
                    path=Path(assignment.output),
                    size=size,
                    fps=assignment.fps,
                    chunk=self.profile.decode_chunk_size,
                    threads=self.profile.threads,
                    report=report,
                )
            timings["decode"] -= timings["close"]
            report.log(f"decoded {frames} frames {timings['decode']:.2f} s")
        return Film(width=size[0], height=size[1], frames=frames, timings=timings)

    def _picture(
        self, assignment: Assignment, generator: torch.Generator, report: Report
    ) -> tuple[Size, Tensor]:
        """The film's size and its first picture at the native size."""
        given = open_picture(Path(assignment.picture)) if assignment.picture is not None else None
        size = film_size(assignment.width, assignment.height, given)
        native = self._native(size)
        if given is not None:
            picture = cover(given, size, native)
        else:
            assert assignment.prompt is not None, "an assignment has a picture or a prompt"
            first_frame = self.weights.first_frame
            picture = first_frame.draw(assignment.prompt, size, native, generator, report)
        return size, picture.to(self._device)

    def _native(self, size: Size) -> Size:
        levels = len(self.weights.unets[Sampler.LCM].config["block_out_channels"])
        return native_size(size, self.profile.native_sizes, self.weights.codec.cell * 2 ** (levels - 1))

    def _condition(self, assignment: Assignment, picture: Tensor, generator: torch.Generator) -> Condition:
        fps = self.profile.condition_fps
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
            report.progress("denoise", step, steps)
            report.check_cancelled()
        return latents

    def _warm(self) -> None:
        """Run each network once, so that the first request is as quick as the next."""
        size = self.profile.warm_size
        generator = torch.Generator("cpu").manual_seed(0)
        weights, numbers = self.weights, self.profile.samplers.lcm
        picture = weights.first_frame.draw(WARM_PROMPT, size, self._native(size), generator, _Silent())
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
        for unet in dict.fromkeys(weights.unets.values()):
            latents = next(sample_lcm(unet, condition, numbers, 1, generator))
            next(decoded_chunks(weights.codec, latents, self.profile.decode_chunk_size))
        self._settle()

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Generator[None]:
        begun = time.perf_counter()
        yield
        self._settle()
        timings[stage] = time.perf_counter() - begun

    def _settle(self) -> None:
        """Wait for the device, so that seconds and cancels mean what they say."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _Silent:
    """A report nobody reads, for the warm-up."""

    def log(self, message: str, level: Level = Level.INFO) -> None: ...

    def progress(self, stage: str, step: int, steps: int) -> None: ...

    def check_cancelled(self) -> None: ...
