"""An engine on a timetable: real child process, real small MP4, and faults on request.

Given to the server as `--engine tests.timed_engine:open`. The prompt is the timetable; every word that is
not one of these is ignored, so any sentence is a prompt:

    steps=4        denoising steps (default: the request's own, else 4)
    pause=0.05     seconds each step takes (default 0.01)
    frames=25      frames of the film
    made_under=X   the film's own fingerprint, other than the runner's
    print=WORD     print WORD to stdout and to stderr at step 1; print=flood prints 10 MB,
                   print=bytes invalid UTF-8, print=unended half a line
    crash_at=2     SIGKILL itself at that step          exit_at=2     sys.exit(3)
    hang_at=2      wait for ever                        garbage_at=2  write rubbish into the protocol
    cut_at=2       close its socket in the middle of a message, then SIGKILL itself
    late           one more log line once the film is made
    huge           its log line and its RuntimeError are 2 MB long
    raise_at=2     raise RuntimeError                   refuse_at=2   raise InputRefused for `prompt`
    memory_at=2    raise MemoryError                    lost_at=2     raise DeviceLost
    until=2        faults happen in attempts up to this one only (default: in all)
    ignore_cancel  never look at the cancel flag
    step_until=X   do not end the last step before the file X is there
    decode_until=X decode until the file X is there
    close_until=X  be off the device, and not done, until the file X is there; the step of a fault may be
                   `close`, too

Equal input and seed give equal bytes. The picture's mean colour is the film's background.
"""

import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stillmotion.errors import DeviceLost, InputRefused, WeightsMissing
from stillmotion.reporting import Report
from stillmotion.types import Assignment, Film, FinishFilm
from stillmotion.video import VideoWriter

FRAMES = 25
#: Twice what a message of the protocol may hold.
HUGE = 2 * 1024 * 1024
#: Side of a film whose size the request leaves open.
SIDE = 256


class TimedEngine:
    def __init__(self, device: str, frames: int = FRAMES) -> None:
        self.device = device
        self.frames = frames
        self.fingerprint = f"timed-{device}"
        self.summary = f"timed engine on {device}"

    def render(self, assignment: Assignment, report: Report) -> FinishFilm:
        table = read_timetable(assignment.prompt or "")
        steps = int(table.get("steps", assignment.steps or 4))
        pause_s = float(table.get("pause", 0.01))
        begun = time.monotonic()
        for step in range(1, steps + 1):
            if "ignore_cancel" not in table:
                report.check_cancelled()
            if step == 1 and "print" in table:
                say(table["print"])
            if assignment.attempt <= int(table.get("until", assignment.attempt)):
                misbehave(table, str(step))
            time.sleep(pause_s)
            if step == steps:
                await_file(table.get("step_until"))
            report.log(f"step {step}/{steps} ({pause_s:.2f} s)" + ("x" * HUGE if "huge" in table else ""))
            report.progress("denoise", step, steps)
        denoised = time.monotonic()
        await_file(table.get("decode_until"))
        width, height = assignment.width or SIDE, assignment.height or SIDE
        frames = draw(assignment, width, height, int(table.get("frames", self.frames)))
        timings = {"denoise": denoised - begun, "decode": time.monotonic() - denoised}

        def finish() -> Film:
            decoded = time.monotonic()
            await_file(table.get("close_until"))
            if assignment.attempt <= int(table.get("until", assignment.attempt)):
                misbehave(table, "close")
            with VideoWriter(Path(assignment.output), width, height, assignment.fps) as writer:
                writer.write(frames)
            if "late" in table:
                threading.Timer(0.1, report.log, ["too late"]).start()
            seconds = {**timings, "close": time.monotonic() - decoded}
            return Film(
                width=width,
                height=height,
                frames=len(frames),
                timings=seconds,
                fingerprint=table.get("made_under"),
            )

        return finish

    def warm_up(self) -> Iterator[tuple[int, int]]:
        yield 1, 1


class WarmingEngine(TimedEngine):
    """Warms three sizes; beyond the first, each once the file `warm-N` is in the data directory."""

    def __init__(self, device: str, folder: Path) -> None:
        super().__init__(device, frames=1)
        self._folder = folder

    def warm_up(self) -> Iterator[tuple[int, int]]:
        yield 1, 3
        for size in (2, 3):
            (self._folder / f"warming-{size}").touch()
            while not (self._folder / f"warm-{size}").exists():
                time.sleep(0.01)
            yield size, 3


def read_timetable(prompt: str) -> dict[str, str]:
    words = (word.partition("=") for word in prompt.split())
    return {name: value for name, _, value in words}


def say(word: str) -> None:
    if word == "flood":
        print("x" * 99 + "\n", end="", flush=True)
        for _ in range(100):
            os.write(1, (b"x" * 99 + b"\n") * 1000)
    elif word == "bytes":
        os.write(1, b"caf\xe9 \x00 done\n")
    elif word == "unended":
        os.write(1, b"no end")
    else:
        print(word)
        print(word, file=sys.stderr)


def await_file(name: str | None) -> None:
    while name is not None and not Path(name).exists():
        time.sleep(0.01)


def socket_of_worker() -> int:
    return int(sys.argv[sys.argv.index("--fd") + 1])


def misbehave(table: Mapping[str, str], step: str) -> None:
    if table.get("crash_at") == step:
        os.kill(os.getpid(), signal.SIGKILL)
    if table.get("exit_at") == step:
        sys.exit(3)
    if table.get("hang_at") == step:
        threading.Event().wait()
    if table.get("garbage_at") == step:
        os.write(socket_of_worker(), b"rubbish, not a message\n")
    if table.get("cut_at") == step:
        with socket.socket(fileno=os.dup(socket_of_worker())) as link:
            link.send(b'{"type": "log", "mess')
            link.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    if table.get("raise_at") == step:
        raise RuntimeError("told to raise by the timetable" + ("x" * HUGE if "huge" in table else ""))
    if table.get("memory_at") == step:
        raise MemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    if table.get("lost_at") == step:
        raise DeviceLost("cuda:0 failed: CUDA error: an illegal memory access was encountered")
    if table.get("refuse_at") == step:
        raise InputRefused("`prompt` asks to be refused.", field="prompt")


def draw(assignment: Assignment, width: int, height: int, frames: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A square crosses a plain background; colours come from the seed, the prompt and the picture."""
    words = f"{assignment.seed} {assignment.prompt} {assignment.motion_bucket_id} {assignment.cond_aug}"
    digest = hashlib.sha256(words.encode()).digest()
    background = list(digest[:3])
    if assignment.picture is not None:
        with Image.open(assignment.picture) as picture:
            background = [round(value) for value in np.asarray(picture.convert("RGB")).mean((0, 1))]
    film = np.empty((frames, height, width, 3), np.uint8)
    film[:] = background
    side = min(width, height) // 4
    for index in range(frames):
        left = (width - side) * index // max(frames - 1, 1)
        film[index, side : 2 * side, left : left + side] = list(digest[3:6])
    return film


def open(settings: Mapping[str, Any]) -> TimedEngine:
    return TimedEngine(settings["device"])


def open_brief(settings: Mapping[str, Any]) -> TimedEngine:
    """Films of one frame, for tests that ask for very many."""
    return TimedEngine(settings["device"], frames=1)


def open_warming(settings: Mapping[str, Any]) -> TimedEngine:
    return WarmingEngine(settings["device"], Path(settings["data_dir"]))


def open_without_weights(settings: Mapping[str, Any]) -> TimedEngine:
    print("looking for weights")
    raise WeightsMissing(f"unet.safetensors is missing for profile {settings['profile']}.")


def open_never(settings: Mapping[str, Any]) -> TimedEngine:
    print("loading for ever")
    threading.Event().wait()
    raise AssertionError("nobody sets it")


def open_and_exit(settings: Mapping[str, Any]) -> TimedEngine:
    print("no such device", file=sys.stderr)
    sys.exit(4)
