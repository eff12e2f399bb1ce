import pytest

from stillmotion.keys import list_keys
from stillmotion.store import queue
from stillmotion.store.logs import append_logs, read_logs
from stillmotion.store.open import Store
from stillmotion.store.position import queue_position, waiting_elsewhere
from stillmotion.store.tables import outbox
from stillmotion.types import (
    CancelAnswer,
    Ending,
    Failure,
    Level,
    LogLine,
    Outcome,
    Request,
    State,
)
from tests.store.asks import (
    LEASE_S,
    NOW,
    OK,
    ask,
    claim_on,
    claimed,
    finish,
    limited_key,
    read,
    submit,
)


def claim(store: Store, profile: str = "pocket", now: float = NOW) -> Request | None:
    return store.write_now(lambda conn: claim_on(conn, now, profile))


def active(store: Store) -> int:
    return store.read_now(list_keys)[0].active


def webhooks(store: Store) -> list[tuple[str, str]]:
    return store.read_now(lambda conn: [(row.request_id, row.url) for row in conn.execute(outbox.select())])


def test_submitted_request_reads_back_as_it_was(store: Store) -> None:
    new = ask(picture="file:abc", webhook="http://hook/x", attached=True, start_by=NOW + 60)
    written = submit(store, new)
    assert read(store, new.id) == written
    for name in ("id", "profile", "endpoint", "key_id", "input", "picture", "bases", "webhook", "attached"):
        assert getattr(written, name) == getattr(new, name)
    assert (written.state, written.attempt, written.crashes) == (State.READY, 0, 0)


def test_inputs_keep_what_databases_dislike(store: Store) -> None:
    prompt = "nul \x00, lone \ud800, emoji 🚀, قمر, line\r\nbreak"
    new = ask(input={"prompt": prompt, "cond_aug": 0.02, "seed": 2**63 - 1})
    submit(store, new)
    assert read(store, new.id).input == new.input


def test_requests_are_claimed_in_order_of_submit(store: Store) -> None:
    waiting = [submit(store, ask()) for _ in range(5)]
    assert [claimed(store).id for _ in waiting] == [new.id for new in waiting]
    assert claim(store) is None


def test_order_survives_a_clock_that_jumps_back(store: Store) -> None:
    first = submit(store, ask(), NOW)
    second = submit(store, ask(), NOW - 3600)
    third = submit(store, ask(), NOW + 1)
    assert first.ord < second.ord < third.ord
    assert second.ord == first.ord + 1
    assert third.ord == int((NOW + 1) * 1_000_000)


def test_low_priority_waits_an_hour_behind_and_no_longer(store: Store) -> None:
    low = submit(store, ask(low_priority=True), NOW)
    soon = submit(store, ask(), NOW + 3599)
    late = submit(store, ask(), NOW + 3601)
    assert [claimed(store).id for _ in range(3)] == [soon.id, low.id, late.id]


def test_each_profile_has_its_own_queue(store: Store) -> None:
    other = submit(store, ask(profile="svd"))
    assert claim(store) is None

    def elsewhere(profile: str) -> dict[str, int]:
        return store.read_now(lambda conn: waiting_elsewhere(conn, profile))

    assert [elsewhere(profile) for profile in ("pocket", "svd")] == [{"svd": 1}, {}]
    found = claim(store, profile="svd")
    assert found is not None and found.id == other.id
    assert elsewhere("pocket") == {}


def test_position_counts_the_waiting_ahead(store: Store) -> None:
    key = limited_key(store, 1)
    running = submit(store, ask(key_id=key))
    held = submit(store, ask(key_id=key))
    free = submit(store, ask())
    assert held.state is State.HELD

    def position(request: Request) -> int:
        current = read(store, request.id)
        return store.read_now(lambda conn: queue_position(conn, current))

    assert [position(each) for each in (running, held, free)] == [0, 1, 2]
    claimed(store)
    assert [position(each) for each in (running, held, free)] == [0, 0, 1]


def test_finish_writes_outcome_logs_and_webhook_together(store: Store) -> None:
    submit(store, ask(webhook="http://hook/x"))
    held = claimed(store)
    line = LogLine(at=NOW, level=Level.INFO, message="decoded 25 frames")
    assert store.write_now(lambda conn: queue.finish(conn, held.id, held.attempt, OK, [line], NOW + 5))
    done = read(store, held.id)
    assert (done.state, done.outcome, done.result) == (State.DONE, Outcome.OK, OK.result)
    assert (done.fingerprint, done.timings, done.finished) == ("pocket/cpu", {"denoise": 0.5}, NOW + 5)
    assert (done.owner, done.lease_until) == (None, None)
    assert store.read_now(lambda conn: read_logs(conn, held.id)) == ([line], 1)
    assert webhooks(store) == [(held.id, "http://hook/x")]


def test_failure_reads_back_with_its_context(store: Store) -> None:
    submit(store, ask())
    failure = Failure(
        status=422,
        kind="image_too_large",
        message="too large",
        field="image_url",
        context={"max_width": 9},
    )
    held = claimed(store)
    finish(store, held, Ending(outcome=Outcome.ERROR, failure=failure))
    assert read(store, held.id).failure == failure


def test_stale_attempt_can_neither_finish_log_renew_crash_nor_give_back(store: Store) -> None:
    submit(store, ask(webhook="http://hook/x"))
    old = claimed(store)
    assert store.write_now(lambda conn: queue.lapse(conn, NOW + 21, NOW + 21)) == [old.id]
    current = claimed(store, NOW + 22)
    assert current.attempt == old.attempt + 1
    line = LogLine(at=NOW, level=Level.INFO, message="from the grave")

    def all_refused(stale: Request) -> None:
        assert not finish(store, stale)
        assert not store.write_now(lambda conn: append_logs(conn, stale.id, stale.attempt, [line]))
        assert not store.write_now(
            lambda conn: queue.finish(conn, stale.id, stale.attempt, OK, [line], NOW + 30)
        )
        renewed = store.write_now(
            lambda conn: queue.renew(conn, [(stale.id, stale.attempt)], until=NOW + LEASE_S)
        )
        assert renewed == {}
        assert (
            store.write_now(lambda conn: queue.crashed(conn, stale.id, stale.attempt, now=NOW, max_crashes=3))
            is None
        )
        assert not store.write_now(lambda conn: queue.give_back(conn, stale.id, stale.attempt, NOW))

    all_refused(old)
    assert read(store, current.id) == current
    assert finish(store, current)
    all_refused(current)
    assert store.read_now(lambda conn: read_logs(conn, current.id)) == ([], 0)
    assert len(webhooks(store)) == 1


def test_renew_keeps_the_lease_tells_progress_and_brings_the_cancel(store: Store) -> None:
    for _ in range(2):
        submit(store, ask())
    one, two = claimed(store), claimed(store)
    store.write_now(lambda conn: queue.cancel(conn, two.id, NOW))
    step = {"stage": "denoise", "step": 3, "steps": 4}
    pairs = [(one.id, one.attempt), (two.id, two.attempt), ("gone", 1)]
    kept = store.write_now(
        lambda conn: queue.renew(conn, pairs, until=NOW + 10 + LEASE_S, progress={one.id: step, "gone": {}})
    )
    assert kept == {pairs[0]: False, pairs[1]: True}
    assert read(store, one.id).progress == step
    assert read(store, one.id).lease_until == NOW + 30
    assert store.write_now(lambda conn: queue.lapse(conn, NOW + 29, NOW + 29)) == []
    assert store.write_now(lambda conn: queue.renew(conn, [], until=NOW + LEASE_S)) == {}
    assert store.write_now(lambda conn: queue.give_back(conn, one.id, one.attempt, NOW))
    assert read(store, one.id).progress is None


def test_three_crashes_fail_a_request_and_others_go_on(store: Store) -> None:
    poison, next_one = submit(store, ask(webhook="http://hook/x")), submit(store, ask())
    states: list[State | None] = []
    for _ in range(3):
        held = claimed(store)
        assert held.id == poison.id
        states.append(
            store.write_now(
                lambda conn, held=held: queue.crashed(conn, held.id, held.attempt, now=NOW, max_crashes=3)
            )
        )
    assert states == [State.READY, State.READY, State.DONE]
    failed = read(store, poison.id)
    assert failed.outcome is Outcome.ERROR and failed.failure is not None
    assert (failed.failure.status, failed.failure.kind) == (500, "runner_disconnected")
    assert webhooks(store) == [(poison.id, "http://hook/x")]
    assert claimed(store).id == next_one.id


def test_drains_lapses_and_restarts_keep_the_place_and_count_no_crash(store: Store) -> None:
    first, second = submit(store, ask()), submit(store, ask())
    held = claimed(store)
    assert store.write_now(lambda conn: queue.give_back(conn, held.id, held.attempt, NOW))
    claimed(store)
    assert store.write_now(lambda conn: queue.lapse(conn, NOW + 21, NOW + 21)) == [first.id]
    claimed(store)
    assert store.write_now(lambda conn: queue.requeue_running(conn, NOW)) == [first.id]
    again = claimed(store)
    assert (again.id, again.ord, again.attempt, again.crashes) == (first.id, first.ord, 4, 0)
    assert claimed(store).id == second.id


def test_restart_requeues_more_than_one_sweep_frees(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "SWEEP_ROWS", 2)
    running = [submit(store, ask()).id for _ in range(5)]
    for _ in running:
        claimed(store)
    store.write_now(lambda conn: queue.cancel(conn, running[1], NOW))
    assert sorted(store.write_now(lambda conn: queue.requeue_running(conn, NOW))) == sorted(running)


def test_cancel_of_waiting_running_finished_and_unknown(store: Store) -> None:
    def cancel(request_id: str) -> CancelAnswer:
        return store.write_now(lambda conn: queue.cancel(conn, request_id, NOW + 1))

    waiting = submit(store, ask(webhook="http://hook/x"))
    assert cancel(waiting.id) is CancelAnswer.REMOVED
    assert read(store, waiting.id).outcome is Outcome.CANCELLED
    assert webhooks(store) == [(waiting.id, "http://hook/x")]
    assert cancel(waiting.id) is CancelAnswer.ALREADY_DONE
    assert claim(store) is None

    submit(store, ask())
    held = claimed(store)
    assert [cancel(held.id), cancel(held.id)] == [CancelAnswer.ASKED, CancelAnswer.ASKED]
    assert read(store, held.id).state is State.RUNNING
    assert cancel("unknown") is CancelAnswer.UNKNOWN


def test_cancel_asked_before_a_crash_drain_lapse_or_restart_ends_the_request(store: Store) -> None:
    def run_and_ask_cancel() -> Request:
        submit(store, ask())
        held = claimed(store)
        store.write_now(lambda conn: queue.cancel(conn, held.id, NOW))
        return held

    one = run_and_ask_cancel()
    assert (
        store.write_now(lambda conn: queue.crashed(conn, one.id, one.attempt, now=NOW, max_crashes=3))
        is State.DONE
    )
    two = run_and_ask_cancel()
    assert store.write_now(lambda conn: queue.give_back(conn, two.id, two.attempt, NOW))
    three = run_and_ask_cancel()
    assert store.write_now(lambda conn: queue.lapse(conn, NOW + 21, NOW + 21)) == [three.id]
    four = run_and_ask_cancel()
    assert store.write_now(lambda conn: queue.requeue_running(conn, NOW)) == [four.id]
    assert {read(store, each.id).outcome for each in (one, two, three, four)} == {Outcome.CANCELLED}


def test_key_at_its_limit_holds_the_next_and_finishing_promotes_the_oldest(store: Store) -> None:
    key = limited_key(store, 2)
    asked = [submit(store, ask(key_id=key)) for _ in range(4)]
    assert [each.state for each in asked] == [State.READY, State.READY, State.HELD, State.HELD]
    assert active(store) == 2
    finish(store, claimed(store))
    assert [read(store, each.id).state for each in asked[2:]] == [State.READY, State.HELD]
    assert active(store) == 2
    store.write_now(lambda conn: queue.cancel(conn, asked[3].id, NOW))
    for _ in range(2):
        finish(store, claimed(store))
    assert active(store) == 0
    assert submit(store, ask(key_id=key)).state is State.READY


def test_start_deadline_fails_what_never_started_only(store: Store) -> None:
    started = submit(store, ask(start_by=NOW + 10))
    held = claimed(store)
    waiting = submit(store, ask(start_by=NOW + 10, webhook="http://hook/x"))
    store.write_now(lambda conn: queue.give_back(conn, held.id, held.attempt, NOW))
    assert store.write_now(lambda conn: queue.expire_waiting(conn, NOW + 9, NOW + 9)) == []
    assert store.write_now(lambda conn: queue.expire_waiting(conn, NOW + 10, NOW + 10)) == [waiting.id]
    failure = read(store, waiting.id).failure
    assert failure is not None and (failure.status, failure.kind) == (504, "request_timeout")
    assert claimed(store, NOW + 20).id == started.id
    assert webhooks(store) == [(waiting.id, "http://hook/x")]


def test_passed_start_deadline_is_not_claimed_even_before_the_sweep(store: Store) -> None:
    submit(store, ask(start_by=NOW + 10))
    assert claim(store, now=NOW + 10) is None


def test_restart_cancels_what_clients_waited_for_on_their_connection(store: Store) -> None:
    attached, queued = submit(store, ask(attached=True)), submit(store, ask())
    claimed(store)
    store.write_now(lambda conn: queue.requeue_running(conn, NOW))
    assert store.write_now(lambda conn: queue.cancel_abandoned(conn, NOW)) == [attached.id]
    assert read(store, attached.id).outcome is Outcome.CANCELLED
    assert read(store, queued.id).state is State.READY
