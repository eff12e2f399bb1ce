"""Fault points: named instants at which a process kills itself when told to.

    python -m tests.faults.points serve …      is `python -m stillmotion serve …`, mined
    --engine tests.faults.points:open_timed    an engine whose runner is mined (or :open_pocket)

The file that FAULT_ORDER names holds the point to die at. The dying process removes it first: each order
is obeyed once, and the file's absence says that it was. The product knows nothing of this
(docs/decisions/0010-fault-points.md); a point whose function was renamed stops the server from starting.
"""

import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import Any

from stillmotion.reporting import Report
from stillmotion.runner import Engine
from stillmotion.types import Assignment, Film, FinishFilm
from tests import timed_engine

ORDER = "FAULT_ORDER"


class When(Enum):
    BEFORE = auto()
    AFTER = auto()
    #: Only if it gave something.
    AFTER_GAIN = auto()


#: Where a server dies. Points named `…_before_commit` lie inside the transaction.
SERVER_POINTS = {
    "submit_before_commit": (When.AFTER, "stillmotion.http.requests.submit:submit"),
    "submit_committed": (When.AFTER, "stillmotion.http.requests.submit:_keep"),
    "claim_before_commit": (When.AFTER_GAIN, "stillmotion.store.queue:claim_next"),
    "claim_committed": (When.BEFORE, "stillmotion.work.worker:Worker._serve"),
    "renew_before_commit": (When.AFTER, "stillmotion.store.queue:renew"),
    "film_before_rename": (When.BEFORE, "stillmotion.media.store:_settle"),
    "film_published": (When.AFTER, "stillmotion.work.attempts:Attempt.publish_film"),
    "finish_before_commit": (When.AFTER_GAIN, "stillmotion.store.queue:finish"),
    "finish_committed": (When.AFTER_GAIN, "stillmotion.work.worker:Worker._persist"),
    "cancel_committed": (When.AFTER, "stillmotion.http.requests.queue:cancel_request"),
    "webhook_before_send": (When.BEFORE, "stillmotion.webhooks:Sender._post"),
    "webhook_sent": (When.AFTER, "stillmotion.webhooks:Sender._post"),
    "webhook_before_mark_commit": (When.AFTER_GAIN, "stillmotion.store.outbox:delivered"),
}
#: Reached by a server that starts.
START_POINTS = {"start_before_requeue_commit": (When.AFTER, "stillmotion.cli.serve:requeue_running")}
#: Reached by the first server of a data directory.
FIRST_START_POINTS = {
    "schema_before_commit": (When.AFTER, "stillmotion.store.migrate:upgrade"),
    "first_key_before_commit": (When.AFTER, "stillmotion.cli.datadir:write_whole"),
}
#: Reached by who uploads a file.
UPLOAD_POINTS = {
    "upload_before_commit": (When.AFTER, "stillmotion.http.storage.uploads:complete_file"),
    "upload_committed": (When.AFTER, "stillmotion.http.storage.uploads:Uploads.complete"),
}
#: Where a runner dies.
RUNNER_OPENING, RUNNER_POINTS = "runner_opening", ("runner_film_written",)


def reach(point: str) -> None:
    """Die here if that is the order."""
    order = Path(os.environ[ORDER])
    # There is none mostly, or another process obeys it just now.
    with suppress(FileNotFoundError):
        if order.read_text() == point:
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def give_order(order: Path, point: str) -> None:
    """Have the next process that reaches the point die there."""
    draft = order.with_suffix(".draft")
    draft.write_text(point)
    draft.replace(order)


def mine(point: str, when: When, place: str) -> None:
    """Wrap the function at `module:name` or `module:Class.name`."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    real: Callable[..., Any] = getattr(owner, name)

    def begin() -> None:
        if when is When.BEFORE:
            reach(point)

    def end(result: object) -> None:
        if when is When.AFTER or (when is When.AFTER_GAIN and result):
            reach(point)

    @functools.wraps(real)
    async def mined_coroutine(*args: Any, **kwargs: Any) -> Any:
        begin()
        result = await real(*args, **kwargs)
        end(result)
        return result

    @functools.wraps(real)
    def mined(*args: Any, **kwargs: Any) -> Any:
        begin()
        result = real(*args, **kwargs)
        end(result)
        return result

    setattr(owner, name, mined_coroutine if inspect.iscoroutinefunction(real) else mined)


class MinedEngine:
    """An engine that makes its films as ever, unless its process is to die."""

    def __init__(self, real: Engine) -> None:
        self._real = real
        self.fingerprint, self.device, self.summary = real.fingerprint, real.device, real.summary

        self.warm_up = real.warm_up

    def render(self, assignment: Assignment, report: Report) -> FinishFilm:
        real = self._real.render(assignment, report)

        def finish() -> Film:
            film = real()
            reach("runner_film_written")
            return film

        return finish


def open_timed(settings: Mapping[str, Any]) -> MinedEngine:
    reach(RUNNER_OPENING)
    return MinedEngine(timed_engine.open(settings))


def open_pocket(settings: Mapping[str, Any]) -> MinedEngine:
    from stillmotion import engine

    reach(RUNNER_OPENING)
    return MinedEngine(engine.open(settings))


if __name__ == "__main__":
    for point, (when, place) in (SERVER_POINTS | START_POINTS | FIRST_START_POINTS | UPLOAD_POINTS).items():
        mine(point, when, place)
    from stillmotion.cli.main import main

    sys.exit(main())
