from stillmotion.store import logs, queue
from stillmotion.store.open import Store
from stillmotion.types import Level, LogLine
from tests.store.asks import NOW, OK, ask, claimed, submit


def line(message: str, level: Level = Level.INFO) -> LogLine:
    return LogLine(at=NOW, level=level, message=message)


def append(store: Store, request_id: str, attempt: int, *lines: LogLine) -> bool:
    return store.write_now(lambda conn: logs.append_logs(conn, request_id, attempt, lines))


def messages(store: Store, request_id: str) -> list[str]:
    return [each.message for each in store.read_now(lambda conn: logs.read_logs(conn, request_id))[0]]


def test_lines_of_all_attempts_read_in_order_from_a_cursor(store: Store) -> None:
    submit(store, ask())
    first = claimed(store)
    assert append(store, first.id, first.attempt, line("one"), line("two", Level.STDERR))
    store.write_now(lambda conn: queue.give_back(conn, first.id, first.attempt, NOW))
    assert not append(store, first.id, first.attempt, line("too late"))
    second = claimed(store)
    assert append(store, second.id, second.attempt)
    assert append(store, second.id, second.attempt, line("three"))
    lines, cursor = store.read_now(lambda conn: logs.read_logs(conn, first.id))
    assert [each.message for each in lines] == ["one", "two", "three"]
    assert lines[1].level is Level.STDERR
    assert store.read_now(lambda conn: logs.read_logs(conn, first.id, 2)) == ([line("three")], 3)
    assert store.read_now(lambda conn: logs.read_logs(conn, first.id, cursor)) == ([], 3)


def test_line_cap_ends_in_one_truncated_line_and_the_finish_still_counts(store: Store) -> None:
    submit(store, ask())
    held = claimed(store)
    for _ in range(3):
        assert append(store, held.id, held.attempt, *[line("x")] * (logs.MAX_LINES // 2))
    assert store.write_now(
        lambda conn: queue.finish(conn, held.id, held.attempt, OK, [line("last words")], NOW)
    )
    kept = messages(store, held.id)
    assert len(kept) == logs.MAX_LINES
    assert kept[-1].startswith("truncated")
    assert set(kept[:-1]) == {"x"}


def test_character_cap_ends_in_one_truncated_line(store: Store) -> None:
    submit(store, ask())
    held = claimed(store)
    long = line("y" * (2 * logs.MAX_LINE_CHARS))
    for _ in range(2):
        append(store, held.id, held.attempt, *[long] * (logs.MAX_CHARS // logs.MAX_LINE_CHARS))
    kept = messages(store, held.id)
    assert len(kept) == logs.MAX_CHARS // logs.MAX_LINE_CHARS
    assert {len(each) for each in kept[:-1]} == {logs.MAX_LINE_CHARS}
    assert kept[0].endswith("y…")
    assert [each.startswith("truncated") for each in kept].count(True) == 1


def test_line_with_nul_and_lone_surrogate_is_kept_readable(store: Store) -> None:
    submit(store, ask())
    held = claimed(store)
    append(store, held.id, held.attempt, line("a\x00b\udc80c 🚀"))
    assert messages(store, held.id) == ["a\ufffdb?c 🚀"]
