"""The worker: claims requests for its devices, has its runners make them, and publishes what they made.

Invariants:
- A request is touched only as (id, attempt); the store refuses a stale attempt, and that is no error.
- Bytes lie whole in the media store before the transaction that names them; a loser's bytes are deleted.
- A lease that could not be renewed in time ends the work here before anyone else may begin it.
- Only a runner that died or hung on a request counts as its crash; drain, stop and lost leases do not, nor
  does a death with two requests under way: each then runs with none beside it.
- A request is claimed when a device has nothing but the decoding of the last one left to do, no sooner, and
  not when another device is idle.
- A store that does not answer stops nothing for good: every write is tried again, the lease guards it.
- `run` returns only when every child is reaped.
"""

import asyncio
import logging
import os
import shutil
import socket
from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from stillmotion.clock import Clock
from stillmotion.errors import CommitUnanswered, InputRefused, RunnerGone, StoreUnavailable
from stillmotion.media.store import MediaStore
from stillmotion.settings import DAY_S, Settings
from stillmotion.store import queue
from stillmotion.store.logs import append_logs
from stillmotion.store.open import Store
from stillmotion.types import Assignment, Failure, FileRecord, Film, Level, Readiness, Request, Warmth
from stillmotion.wakeup import Wakeup
from stillmotion.work.attempts import PICTURE, Attempt, Stop, Stopped, Unprepared
from stillmotion.work.lanes import Lane, happens, pause_s
from stillmotion.work.pictures import place_picture
from stillmotion.work.runners import Cancelled, Notes, Reply, Runner, opening_for

#: An idle device looks by itself this often; other processes may have written the queue.
LOOK_S = 1.0
#: Runners, leases and cancelled work are looked at this often; nothing is read for it.
WATCH_S = 0.25
#: Share of the lease that must be left when the work is dropped: 3 s of 20.
FENCE_SHARE = 0.15
RETRY_FIRST_S, RETRY_LAST_S = 0.2, 5.0

log = logging.getLogger("stillmotion.worker")


class Worker:
    """All devices of one machine for one profile; belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        media: MediaStore,
        clock: Clock,
        wakeup: Wakeup,
        profile: str,
        devices: Sequence[str],
        engine: str = "stillmotion.engine:open",
    ) -> None:
        self.fingerprint: str | None = None
        self._settings = settings
        self._store = store
        self._media = media
        self._clock = clock
        self._wakeup = wakeup
        self._profile = profile
        self._engine = engine
        self._scratch = settings.data_dir.absolute() / "scratch"
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._ledger = asyncio.Lock()
        self._news = asyncio.Event()
        self._ending = asyncio.Event()
        self._stopped = False
        #: Why the store did not take the last write that had to do with work.
        self._trouble: str | None = None
        self._lanes = [Lane(device, self._ending, lambda: wakeup.notify("queue")) for device in devices]

    async def run(self) -> None:
        """Work until `drain` or `stop`; every child is gone when this returns."""
        async with asyncio.TaskGroup() as around:
            clocks = [
                around.create_task(clock())
                for clock in (self._keep_leases, self._flush_news, self._watch, self._sweep)
            ]
            async with asyncio.TaskGroup() as lanes:
                for lane in self._lanes:
                    lanes.create_task(self._work(lane))
            for task in clocks:
                task.cancel()

    def drain(self) -> None:
        """Claim nothing more; what runs may finish within `drain_grace_s`, then it is given back."""
        if self._ending.is_set():
            return
        log.info("worker drains running=%d", len(self._attempts))
        self._ending.set()
        self._wakeup.notify("queue")
        asyncio.get_running_loop().call_later(self._settings.drain_grace_s, self.stop)
        for lane in self._lanes:
            if lane.on_device is not None:
                lane.drop_waiting()
            if not lane.attempts:
                lane.end()
            lane.hint()

    def stop(self) -> None:
        """End at once: kill every runner and give running requests back to their places."""
        self._stopped = True
        self._ending.set()
        self._wakeup.notify("queue")
        for attempt in self._attempts.values():
            attempt.drop(Stop.ENDING)
        for lane in self._lanes:
            lane.end()

    def readiness(self) -> Readiness:
        if self._ending.is_set():
            return Readiness(ready=False, reason="the server is shutting down")
        if self._trouble is not None:
            return Readiness(ready=False, reason=self._trouble)
        ready = [lane.runner for lane in self._lanes if lane.runner is not None and lane.runner.ready]
        if ready:
            return Readiness(
                ready=True,
                reason=f"ready on {', '.join(runner.device for runner in ready)}",
                runners=[
                    Warmth(device=runner.device, warm=runner.warm, sizes=runner.sizes) for runner in ready
                ],
            )
        return Readiness(ready=False, reason="; ".join(lane.reason for lane in self._lanes))

    # The life of one device

    async def _work(self, lane: Lane) -> None:
        try:
            async with asyncio.TaskGroup() as serving:
                while not self._ending.is_set():
                    runner = lane.runner
                    if runner is None or runner.is_gone:
                        # What it had goes back to its place before anything else is claimed.
                        lane.drop_waiting()
                        if lane.attempts:
                            await lane.moved()
                        else:
                            await self._start(lane)
                    elif not self._may_claim(lane):
                        await lane.moved()
                    elif (request := await self._claim(lane)) is None:
                        await self._wakeup.wait("queue", LOOK_S)
                    else:
                        serving.create_task(self._serve(lane, self._hold(lane, runner, request)))
        finally:
            await lane.ended()

    def _may_claim(self, lane: Lane) -> bool:
        # What this device would only prepare, an idle one begins at once.
        ahead = lane.on_device is not None
        if ahead and any(other.idle for other in self._lanes):
            return False
        return lane.wants_another(self._clock.monotonic())

    async def _start(self, lane: Lane) -> None:
        opening = opening_for(self._settings, self._profile, lane.device)
        await lane.start(self._engine, opening, self._settings.start_timeout_s)
        if lane.ready and lane.runner is not None:
            self.fingerprint = lane.runner.fingerprint

    async def _claim(self, lane: Lane) -> Request | None:
        owner = f"{socket.gethostname()}:{os.getpid()}:{lane.device}"
        now, steady = self._clock.now(), self._clock.steady()
        try:
            claimed = await self._store.write(
                lambda conn: queue.claim_next(
                    conn,
                    profile=self._profile,
                    owner=owner,
                    now=now,
                    steady=steady,
                    lease_s=self._settings.lease_s,
                )
            )
        except StoreUnavailable as error:
            log.warning("queue not reachable device=%s: %s", lane.device, error)
            self._trouble = f"the database takes no writes: {error.__cause__ or error}"
            await happens(self._ending, LOOK_S)
            return None
        self._trouble = None
        return claimed

    # The life of one attempt

    def _hold(self, lane: Lane, runner: Runner, request: Request) -> Attempt:
        assert request.lease_until is not None, "a claimed request has a lease"
        attempt = Attempt(
            request,
            runner,
            Notes(self._clock, self._news, lane.tell),
            self._scratch,
            held_until=self._fence(request.lease_until),
            claimed=self._clock.monotonic(),
        )
        self._attempts[attempt.key] = attempt
        lane.attempts.append(attempt)
        # The worker may have been told to end while this was being claimed.
        if self._stopped or (self._ending.is_set() and lane.on_device is not None):
            attempt.drop(Stop.ENDING)
        return attempt

    async def _serve(self, lane: Lane, attempt: Attempt) -> None:
        request = attempt.request
        log.info("%s started attempt=%d device=%s", *attempt.key, lane.device)
        attempt.notes.log(f"started on {lane.device}" + (" again" if request.attempt > 1 else ""))
        self._wakeup.notify(f"request:{request.id}")
        try:
            reply = await self._make(lane, attempt)
            if reply is not None:
                lane.starts = 0
            await self._settle(attempt, reply)
        finally:
            self._attempts.pop(attempt.key, None)
            await asyncio.to_thread(shutil.rmtree, attempt.folder, ignore_errors=True)
            lane.attempts.remove(attempt)
            lane.hint()
        self._wakeup.notify("queue")

    async def _make(self, lane: Lane, attempt: Attempt) -> Reply | None:
        """Have the film made; None when there is no answer: the runner died, or the attempt was stopped."""
        request_id = attempt.key[0]
        try:
            assignment = await attempt.prepare(self._prepare(lane, attempt))
            attempt.running = True
            return await attempt.runner.run(assignment, attempt.notes)
        except InputRefused as refused:
            return refused.failure
        except StoreUnavailable as error:
            log.warning("%s is given back, its picture's record cannot be read: %s", request_id, error)
            # Back at its place it is the next to be claimed.
            await happens(self._ending, LOOK_S)
        except (OSError, Unprepared) as error:
            log.error("%s cannot be prepared: %s", request_id, error, exc_info=error.__cause__)
            return _broken(error)
        except (Stopped, RunnerGone) as end:
            if attempt.stop is Stop.CANCELLED:
                return Cancelled()
            # A runner that died before it took the job did not die of it.
            if attempt.stop is None and attempt.notes.began is not None:
                if attempt.runner.died_of == 1:
                    attempt.crash = str(end)
                else:
                    told = f"the runner died ({end}) with two films; this one runs again"
                    attempt.notes.log(told, Level.WARN)
        finally:
            attempt.running = False
            lane.leave(attempt)
        return None

    async def _prepare(self, lane: Lane, attempt: Attempt) -> Assignment:
        """Place what the runner needs, and wait until it can take it."""
        attempt.folder.mkdir(parents=True, exist_ok=True)
        if attempt.request.picture is not None:
            await place_picture(
                attempt.request.picture,
                attempt.folder / PICTURE,
                settings=self._settings,
                store=self._store,
                media=self._media,
                clock=self._clock,
            )
        assignment = attempt.assignment()
        await lane.take(attempt)
        return assignment

    async def _settle(self, attempt: Attempt, reply: Reply | None) -> None:
        """Publish what became of the attempt; a refusal means that it was no longer ours."""
        began = self._clock.monotonic()
        film: FileRecord | None = None
        if isinstance(reply, Film):
            try:
                keep_s = self._settings.output_days * DAY_S
                film = await attempt.publish_film(self._media, self._clock.now(), keep_s)
            except OSError as error:
                log.error("%s cannot be published: %s", attempt.key[0], error)
                reply = _broken(error)
        attempt.publish_s = self._clock.monotonic() - began
        crashes = self._settings.max_crashes
        if attempt.crash is not None:
            attempt.tell_crash(crashes)
        kept = await self._persist(
            lambda conn: attempt.write_end(conn, reply, film, self._clock.now(), crashes)
        )
        del self._attempts[attempt.key]
        self._wakeup.notify(f"request:{attempt.key[0]}")
        self._wakeup.notify("webhook")
        log.info("%s %s attempt=%d kept=%s", attempt.key[0], attempt.outcome(reply), attempt.key[1], kept)
        # What the database may have kept without an answer is left to housekeeping.
        unwanted = [film.media_key] if film is not None and kept is False else []
        if kept:
            unwanted += attempt.leftovers()
        try:
            await self._media.delete(unwanted)
        except OSError as error:
            log.error("%s films not deleted keys=%s: %s", attempt.key[0], unwanted, error)

    async def _persist(self, operation: Callable[[Connection], bool]) -> bool | None:
        """Write until the store takes it; a worker told to stop tries once, a restart re-queues the rest.

        None when it was not, but an earlier try may have been kept without an answer.
        """
        tries = 0
        not_kept: bool | None = False
        while True:
            try:
                async with self._ledger:
                    kept = await self._store.write(operation)
                return kept or not_kept
            except StoreUnavailable as error:
                tries += 1
                if isinstance(error, CommitUnanswered):
                    not_kept = None
                log.warning("ending not written tries=%d: %s", tries, error)
            if self._stopped:
                return not_kept
            await asyncio.sleep(pause_s(tries, RETRY_FIRST_S, RETRY_LAST_S))

    # The clocks

    async def _keep_leases(self) -> None:
        hint = self._next_hint()
        try:
            while True:
                await hint
                # Listening again before the store is read: a cancel falls into no gap.
                hint = self._next_hint()
                await self._renew()
        finally:
            hint.cancel()

    def _next_hint(self) -> asyncio.Task[bool]:
        return asyncio.create_task(self._wakeup.wait("worker", self._settings.heartbeat_s))

    async def _flush_news(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(self._settings.log_flush_s)
            self._news.clear()
            await self._renew()

    async def _renew(self) -> None:
        """Write what the attempts told, extend their leases and learn of cancels, in one transaction."""
        async with self._ledger:
            held = list(self._attempts.values())
            if not held:
                return
            told = [(attempt, list(attempt.notes.lines), attempt.notes.progress) for attempt in held]
            until = self._clock.steady() + self._settings.lease_s

            def write(conn: Connection) -> dict[tuple[str, int], bool]:
                for attempt, lines, _ in told:
                    if lines:
                        append_logs(conn, *attempt.key, lines)
                return queue.renew(
                    conn,
                    [attempt.key for attempt in held],
                    until=until,
                    progress={attempt.key[0]: progress for attempt, _, progress in told if progress},
                )

            try:
                answers = await self._store.write(write)
            except StoreUnavailable as error:
                log.warning("leases not renewed running=%d: %s", len(held), error)
                self._trouble = f"the database takes no writes: {error.__cause__ or error}"
                return
            self._trouble = None
            kill_at = self._clock.steady() + self._settings.cancel_grace_s
            for attempt, lines, progress in told:
                attempt.notes.written(len(lines), progress)
                if attempt.key not in answers:
                    self._lose(attempt, "someone else has it")
                    continue
                attempt.held_until = self._fence(until)
                if answers[attempt.key]:
                    attempt.cancel(kill_at)
                if lines or progress:
                    self._wakeup.notify(f"request:{attempt.key[0]}")

    async def _watch(self) -> None:
        """Act on time alone: leases not renewed, cancels not obeyed, runners not heard."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = self._clock.steady()
            for attempt in self._attempts.values():
                if now > attempt.held_until:
                    self._lose(attempt, "its lease could not be renewed")
                elif attempt.running and attempt.kill_at is not None and now > attempt.kill_at:
                    attempt.runner.kill("did not stop when cancelled")
            for lane in self._lanes:
                if lane.runner is not None and lane.runner.ready:
                    lane.runner.watch(WATCH_S, self._settings.lease_s, self._settings.stall_timeout_s)

    async def _sweep(self) -> None:
        """Free lapsed requests and fail late ones, whoever left them; workers may do so side by side."""
        while True:
            await asyncio.sleep(pause_s(1, self._settings.sweep_s, self._settings.sweep_s))
            # First our own leases: however late this comes, they must not lapse by our own hand.
            await self._renew()
            times = self._clock.now(), self._clock.steady()
            try:
                freed, late = await self._store.write(
                    lambda conn, times=times: (queue.lapse(conn, *times), queue.expire_waiting(conn, *times))
                )
            except StoreUnavailable as error:
                log.warning("queue not swept: %s", error)
                continue
            for request_id in freed:
                log.warning("%s lapsed", request_id)
            for request_id in late:
                log.info("%s expired before it started", request_id)
            for request_id in (*freed, *late):
                self._wakeup.notify(f"request:{request_id}")
            if freed or late:
                self._wakeup.notify("queue")

    def _fence(self, lease_until: float) -> float:
        return lease_until - self._settings.lease_s * FENCE_SHARE

    def _lose(self, attempt: Attempt, why: str) -> None:
        if attempt.stop is not Stop.LOST:
            log.warning("%s lost attempt=%d: %s", *attempt.key, why)
            attempt.drop(Stop.LOST)


def _broken(error: OSError | Unprepared) -> Failure:
    if isinstance(error, Unprepared):
        message = "The server failed before it could begin this video. Its log says more."
    else:
        message = f"The server could not write or read a file: {error.strerror or type(error).__name__}."
    return Failure(status=500, kind="internal_server_error", message=message)
