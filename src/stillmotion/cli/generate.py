"""`stillmotion generate`: one film without server or store, through the same runner a server uses."""

import asyncio
import base64
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stillmotion import ids
from stillmotion.cli import devices
from stillmotion.clock import SystemClock
from stillmotion.endpoints.catalogue import ENDPOINTS, Endpoint
from stillmotion.errors import InputRefused, RunnerGone, UserError
from stillmotion.images import prepare_picture
from stillmotion.settings import Settings
from stillmotion.types import Assignment, Bases, Film, Request, State
from stillmotion.work.runners import Cancelled, Notes, Reply, Runner, opening_for, start_runner

TEXT_TO_VIDEO = "fal-ai/fast-svd-lcm/text-to-video"
TURBO = "fal-ai/fast-svd-lcm"
HIGH_QUALITY = "fal-ai/stable-video"
#: Exit status of a program ended by Ctrl-C, as shells count it.
INTERRUPTED = 130
#: How often what the runner told is shown.
SHOW_S = 0.1


def generate(
    settings: Settings,
    prompt: str | None,
    image: Path | None,
    turbo: bool,
    parameters: Mapping[str, Any],
    output: Path,
    engine: str,
) -> int:
    """Make the film; returns the exit status."""
    endpoint = _endpoint(prompt, image, turbo)
    given = {name: value for name, value in parameters.items() if value is not None}
    if unknown := sorted(given.keys() - endpoint.Input.model_fields.keys()):
        raise UserError(f"--{unknown[0].replace('_', '-')} is not a parameter of {endpoint.title}.")
    if "video_size" in given:
        given["video_size"] = _size(given["video_size"])
    given |= {"prompt": prompt} if image is None else {"image_url": _data_uri(image)}
    if not output.absolute().parent.is_dir():
        raise UserError(f"The folder {output.absolute().parent} is not there; make it or choose another -o.")
    if output.is_dir() or not os.access(output.absolute().parent, os.W_OK):
        raise UserError(f"Cannot write {output}: name a file, in a folder you may write to, with -o.")
    values = _settle(endpoint, given)
    profile, why, chosen = devices.choose(settings, engine)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{endpoint.title}, profile {profile.name} ({why}), {chosen[0]}, seed {values['seed']}")
    opening = opening_for(settings, profile.name, chosen[0])
    with tempfile.TemporaryDirectory(prefix="stillmotion-") as scratch:
        picture = None if image is None else _picture(settings, image, Path(scratch) / "picture.png")
        film = Path(scratch) / "film.mp4"
        assignment = endpoint.assignment(_request(endpoint, values), picture, film)
        reply = asyncio.run(_make(settings, engine, opening, assignment, console))
        if isinstance(reply, Film):
            _publish(film, output)
            console.print(f"{reply.frames} frames, {reply.width}x{reply.height}, seed {values['seed']}:")
            print(output)
            return 0
    if isinstance(reply, Cancelled):
        console.print("Stopped; nothing was written.")
        return INTERRUPTED
    print(f"stillmotion: {reply.message}", file=sys.stderr)
    return 1


def _endpoint(prompt: str | None, image: Path | None, turbo: bool) -> Endpoint:
    if (prompt is None) == (image is None):
        raise UserError(
            'Say either what to show, `generate "A rocket"`, or what to move, `generate --image FILE`.'
        )
    if turbo and image is None:
        raise UserError("--turbo goes with --image; films from a prompt are always turbo.")
    return ENDPOINTS[TEXT_TO_VIDEO if image is None else TURBO if turbo else HIGH_QUALITY]


def _size(text: str) -> str | dict[str, str]:
    """Read WIDTHxHEIGHT; anything else is the name of a size."""
    width, cross, height = text.partition("x")
    if cross and width.isdecimal() and height.isdecimal():
        return {"width": width, "height": height}
    return text


def _data_uri(image: Path) -> str:
    try:
        return "data:;base64," + base64.b64encode(image.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"Picture {image} cannot be read: {error.strerror}.") from error


def _settle(endpoint: Endpoint, given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(endpoint.settle(given).values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"`{where}` is {first['input']!r}: {first['msg']}.") from error


def _picture(settings: Settings, image: Path, target: Path) -> Path:
    try:
        prepare_picture(image.read_bytes(), target, max_pixels=settings.picture_pixels)
    except InputRefused as refused:
        raise UserError(f"Picture {image}: {refused}") from refused
    return target


def _request(endpoint: Endpoint, values: Mapping[str, Any]) -> Request:
    now = SystemClock().now()
    return Request(
        id=ids.request_id(now),
        profile="",
        endpoint=endpoint.id,
        key_id="",
        input=values,
        picture=None,
        bases=Bases(queue="", files=""),
        state=State.RUNNING,
        ord=0,
        attempt=1,
        crashes=0,
        attached=True,
        created=now,
    )


async def _make(
    settings: Settings, engine: str, opening: Mapping[str, Any], assignment: Assignment, console: Console
) -> Reply:
    """Run one child from start to end; Ctrl-C stops it at its next step, a second one kills it."""
    gone = asyncio.Event()
    clock = SystemClock()
    notes = Notes(clock, asyncio.Event())
    with _bar(console) as bar:
        loading = bar.add_task("loading weights", total=None)
        runner = await start_runner(engine, str(opening["device"]), opening, gone.set)
        interrupted = _obey_interrupt(runner, assignment)
        try:
            await runner.opened(settings.start_timeout_s)
            bar.remove_task(loading)
            making = asyncio.create_task(runner.run(assignment, notes))
            while not making.done():
                await asyncio.wait({making}, timeout=SHOW_S)
                _show(notes, bar)
            return making.result()
        except RunnerGone as error:
            if interrupted.is_set():
                return Cancelled()
            raise UserError(f"The runner ended: {error}.") from error
        finally:
            runner.kill("the film is made")
            await runner.gone()


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _obey_interrupt(runner: Runner, assignment: Assignment) -> asyncio.Event:
    interrupted = asyncio.Event()

    def stop() -> None:
        # Before the weights are loaded there is no step at which to stop.
        if interrupted.is_set() or not runner.ready:
            runner.kill("interrupted")
        interrupted.set()
        runner.cancel(assignment.request_id, assignment.attempt)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return interrupted


def _show(notes: Notes, bar: Progress) -> None:
    lines, progress = list(notes.lines), notes.progress
    notes.written(len(lines), progress)
    for line in lines:
        bar.console.print(line.message, markup=False)
    if progress is None:
        return
    shown = {task.description: task.id for task in bar.tasks}
    stage = str(progress["stage"])
    task = shown[stage] if stage in shown else bar.add_task(stage)
    bar.update(task, completed=progress["step"], total=progress["steps"])


def _publish(film: Path, output: Path) -> None:
    """Put the film at its place whole: a reader never sees half of it."""
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        shutil.copyfile(film, draft)
        draft.replace(output)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"Cannot write {output}: {error.strerror}.") from error
