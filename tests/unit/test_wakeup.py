"""Hints: who is woken, who is not, and that nothing is left behind."""

import asyncio

import pytest

from stillmotion.wakeup import Wakeup

pytestmark = pytest.mark.anyio

LONG_S = 60
SHORT_S = 0.01


async def started(*waits: asyncio.Task[bool]) -> None:
    """Let each task run up to its wait."""
    for _ in waits:
        await asyncio.sleep(0)


async def test_notify_wakes_everyone_who_waits_for_the_topic() -> None:
    wakeup = Wakeup()
    waits = [asyncio.create_task(wakeup.wait("queue", LONG_S)) for _ in range(3)]
    await started(*waits)
    wakeup.notify("queue")
    assert await asyncio.gather(*waits) == [True, True, True]


async def test_other_topics_sleep_on() -> None:
    wakeup = Wakeup()
    wait = asyncio.create_task(wakeup.wait("request:1", SHORT_S))
    await started(wait)
    wakeup.notify("request:2")
    assert await wait is False


async def test_hint_given_before_anyone_waits_is_lost() -> None:
    wakeup = Wakeup()
    wakeup.notify("queue")
    assert await wakeup.wait("queue", SHORT_S) is False


async def test_a_waiter_that_was_cancelled_does_not_disturb_the_others() -> None:
    wakeup = Wakeup()
    leaving, staying = (asyncio.create_task(wakeup.wait("queue", LONG_S)) for _ in range(2))
    await started(leaving, staying)
    leaving.cancel()
    await asyncio.wait({leaving})
    wakeup.notify("queue")
    assert await staying is True


async def test_waiting_again_needs_a_new_hint() -> None:
    wakeup = Wakeup()
    first = asyncio.create_task(wakeup.wait("queue", LONG_S))
    await started(first)
    wakeup.notify("queue")
    assert await first is True
    assert await wakeup.wait("queue", SHORT_S) is False


async def test_a_cancel_that_meets_a_notification_is_not_lost() -> None:
    wakeup = Wakeup()
    waiting = asyncio.create_task(wakeup.wait("queue", 60))
    await asyncio.sleep(0)
    wakeup.notify("queue")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
