"""The state machine against a small model, any sequence of moves, on both databases."""

from dataclasses import dataclass
from operator import attrgetter

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from stillmotion.keys import create_key, list_keys
from stillmotion.store import queue
from stillmotion.store.logs import append_logs, read_logs
from stillmotion.store.open import Store
from stillmotion.store.position import queue_position
from stillmotion.store.tables import metadata, outbox, request
from stillmotion.types import CancelAnswer, Ending, Level, LogLine, Outcome, State
from tests.store.asks import LEASE_S, NOW, ask, claim_on

LIMIT = 2
MAX_CRASHES = 2

picks = st.integers(0, 10)


@dataclass
class Row:
    """What the model knows of one request."""

    id: str
    ord: int
    limited: bool
    webhook: bool
    start_by: float | None
    state: State = State.READY
    attempt: int = 0
    crashes: int = 0
    lease_until: float = 0.0
    cancel: bool = False
    outcome: Outcome | None = None
    logged: int = 0


class Model:
    """The rules of the queue, in memory and without a thought for concurrency."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.last_ord = 0

    def live(self, *states: State) -> list[Row]:
        return sorted((row for row in self.rows if row.state in states), key=attrgetter("ord"))

    def active(self) -> int:
        return sum(row.limited for row in self.live(State.READY, State.RUNNING))

    def submit(self, row: Row, now: float, low: bool) -> None:
        self.last_ord = row.ord = max(self.last_ord + 1, int(now * 1e6))
        if low:
            row.ord += queue.LOW_PRIORITY_US
        if row.limited and self.active() >= LIMIT:
            row.state = State.HELD
        self.rows.append(row)

    def end(self, row: Row, outcome: Outcome) -> None:
        row.state, row.outcome = State.DONE, outcome
        held = self.live(State.HELD)
        if held and self.active() < LIMIT:
            held[0].state = State.READY

    def free(self, row: Row) -> None:
        if row.cancel:
            self.end(row, Outcome.CANCELLED)
        else:
            row.state = State.READY

    def next_ready(self, now: float) -> Row | None:
        ready = self.live(State.READY)
        return next((row for row in ready if row.attempt or row.start_by is None or row.start_by > now), None)


class Queue(RuleBasedStateMachine):
    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.now = NOW

    @initialize()
    def empty(self) -> None:
        def clear(conn):  # type: ignore[no-untyped-def]
            for table in reversed(metadata.sorted_tables):
                conn.execute(table.delete())
            return create_key(conn, "limited", NOW, concurrency=LIMIT)

        self.key = self.store.write_now(clear).partition(":")[0]

    def pick(self, n: int) -> Row:
        """Choose a request, running ones first: they have the most edges."""
        rows = self.model.live(State.RUNNING) or self.model.rows
        return rows[n % len(rows)]

    @rule(
        low=st.booleans(), limited=st.booleans(), webhook=st.booleans(), patience=st.sampled_from([None, 9])
    )
    def submit(self, low: bool, limited: bool, webhook: bool, patience: float | None) -> None:
        start_by = None if patience is None else self.now + patience
        new = ask(
            key_id=self.key if limited else "nobody",
            low_priority=low,
            webhook="http://hook/x" if webhook else None,
            start_by=start_by,
        )
        self.store.write_now(lambda conn: queue.submit(conn, new, self.now))
        row = Row(id=new.id, ord=0, limited=limited, webhook=webhook, start_by=start_by)
        self.model.submit(row, self.now, low)

    @rule()
    def claim(self) -> None:
        expected = self.model.next_ready(self.now)
        found = self.store.write_now(lambda conn: claim_on(conn, self.now))
        assert (found and found.id) == (expected and expected.id)
        if expected:
            expected.state, expected.lease_until = State.RUNNING, self.now + LEASE_S
            expected.attempt += 1

    @precondition(lambda self: self.model.rows)
    @rule(n=picks, age=st.integers(0, 1), outcome=st.sampled_from([Outcome.OK, Outcome.ERROR]))
    def finish(self, n: int, age: int, outcome: Outcome) -> None:
        row = self.pick(n)
        attempt, held = self.held(row, age)
        line = LogLine(at=self.now, level=Level.INFO, message="done")
        ending = Ending(outcome=outcome)
        done = self.store.write_now(
            lambda conn: queue.finish(conn, row.id, attempt, ending, [line], self.now)
        )
        assert done == held
        if held:
            row.logged += 1
            self.model.end(row, outcome)

    def held(self, row: Row, age: int) -> tuple[int, bool]:
        return row.attempt - age, row.state is State.RUNNING and age == 0

    @precondition(lambda self: self.model.rows)
    @rule(n=picks, age=st.integers(0, 1))
    def renew_and_log(self, n: int, age: int) -> None:
        row = self.pick(n)
        attempt, held = self.held(row, age)
        line = LogLine(at=self.now, level=Level.INFO, message="step")
        kept = self.store.write_now(
            lambda conn: queue.renew(conn, [(row.id, attempt)], until=self.now + LEASE_S)
        )
        logged = self.store.write_now(lambda conn: append_logs(conn, row.id, attempt, [line]))
        assert (kept, logged) == ({(row.id, attempt): row.cancel} if held else {}, held)
        if held:
            row.lease_until = self.now + LEASE_S
            row.logged += 1

    @precondition(lambda self: self.model.rows)
    @rule(n=picks, age=st.integers(0, 1))
    def crash(self, n: int, age: int) -> None:
        row = self.pick(n)
        attempt, held = self.held(row, age)
        state = self.store.write_now(
            lambda conn: queue.crashed(conn, row.id, attempt, now=self.now, max_crashes=MAX_CRASHES)
        )
        if held:
            row.crashes += 1
            if row.crashes >= MAX_CRASHES and not row.cancel:
                self.model.end(row, Outcome.ERROR)
            else:
                self.model.free(row)
        assert state == (row.state if held else None)

    @precondition(lambda self: self.model.rows)
    @rule(n=picks, age=st.integers(0, 1))
    def give_back(self, n: int, age: int) -> None:
        row = self.pick(n)
        attempt, held = self.held(row, age)
        assert self.store.write_now(lambda conn: queue.give_back(conn, row.id, attempt, self.now)) == held
        if held:
            self.model.free(row)

    @precondition(lambda self: self.model.rows)
    @rule(n=picks)
    def cancel(self, n: int) -> None:
        row = self.model.rows[n % len(self.model.rows)]
        answer = self.store.write_now(lambda conn: queue.cancel(conn, row.id, self.now))
        if row.state is State.RUNNING:
            assert answer is CancelAnswer.ASKED
            row.cancel = True
        elif row.state is State.DONE:
            assert answer is CancelAnswer.ALREADY_DONE
        else:
            assert answer is CancelAnswer.REMOVED
            self.model.end(row, Outcome.CANCELLED)

    @rule(seconds=st.sampled_from([-3600, 5, 15, 3600]))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def lapse(self) -> None:
        lapsed = [row for row in self.model.live(State.RUNNING) if row.lease_until < self.now]
        freed = self.store.write_now(lambda conn: queue.lapse(conn, self.now, self.now))
        assert sorted(freed) == sorted(row.id for row in lapsed)
        for row in lapsed:
            self.model.free(row)

    @rule()
    def restart(self) -> None:
        running = self.model.live(State.RUNNING)
        freed = self.store.write_now(lambda conn: queue.requeue_running(conn, self.now))
        assert sorted(freed) == sorted(row.id for row in running)
        for row in running:
            self.model.free(row)

    @rule()
    def expire(self) -> None:
        late = [
            row
            for row in self.model.live(State.HELD, State.READY)
            if row.attempt == 0 and row.start_by is not None and row.start_by <= self.now
        ]
        ended = self.store.write_now(lambda conn: queue.expire_waiting(conn, self.now, self.now))
        assert sorted(ended) == sorted(row.id for row in late)
        for row in late:
            row.state, row.outcome = State.DONE, Outcome.ERROR
        for row in self.model.live(State.HELD)[: LIMIT - self.model.active()]:
            row.state = State.READY

    @invariant()
    def database_agrees(self) -> None:
        if not self.model.rows:
            return

        def look(conn):  # type: ignore[no-untyped-def]
            waiting = self.model.live(State.HELD, State.READY)
            last = queue.get(conn, waiting[-1].id) if waiting else None
            return (
                {row.id: row for row in conn.execute(select(*request.c))},
                conn.execute(select(outbox.c.request_id)).scalars().all(),
                list_keys(conn)[0].active,
                queue_position(conn, last) if last else 0,
                len(read_logs(conn, self.model.rows[0].id)[0]),
            )

        stored, hooks, active, position, logged = self.store.read_now(look)
        assert len(stored) == len(self.model.rows)
        for row in self.model.rows:
            found = stored[row.id]
            told = (found.state, found.ord, found.attempt, found.crashes, found.outcome, found.log_lines)
            assert told == (row.state, row.ord, row.attempt, row.crashes, row.outcome, row.logged)
        assert sorted(hooks) == sorted(row.id for row in self.model.live(State.DONE) if row.webhook)
        assert active == self.model.active() <= LIMIT
        assert position == max(0, len(self.model.live(State.HELD, State.READY)) - 1)
        assert logged == self.model.rows[0].logged


def test_any_sequence_of_moves_keeps_the_promises(store: Store) -> None:
    class OnThisStore(Queue):
        pass

    OnThisStore.store = store
    run_state_machine_as_test(
        OnThisStore,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            derandomize=True,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
        ),
    )
