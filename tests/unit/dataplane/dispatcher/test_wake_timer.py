"""When a timer calls back that is asked for several times."""

import asyncio

from inferline_stream.dataplane.dispatcher.wake_timer import WakeTimer


async def test_it_calls_back_at_the_earliest_time_that_it_was_asked_for():
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    timer = WakeTimer(loop, woken.set)
    now_s = loop.time()
    for after_s in (3600.0, 0.01, 7200.0):
        timer.wake_at(now_s + after_s)
    async with asyncio.timeout(20.0):
        await woken.wait()


async def test_it_can_be_set_again_from_what_it_calls():
    loop, calls, done = asyncio.get_running_loop(), [], asyncio.Event()

    def wake():
        calls.append(1)
        if len(calls) < 3:
            timer.wake_at(loop.time() + 0.001)
        else:
            done.set()

    timer = WakeTimer(loop, wake)
    timer.wake_at(loop.time())
    async with asyncio.timeout(20.0):
        await done.wait()
    assert len(calls) == 3


async def test_once_cancelled_it_does_not_call_back_and_can_be_set_again():
    loop, woken = asyncio.get_running_loop(), []
    timer = WakeTimer(loop, lambda: woken.append("early"))
    timer.wake_at(loop.time())
    timer.cancel()
    done = asyncio.Event()
    loop.call_at(loop.time() + 0.01, done.set)
    async with asyncio.timeout(20.0):
        await done.wait()
    assert woken == []
    timer.wake_at(loop.time() + 0.001)
    async with asyncio.timeout(20.0):
        while not woken:
            await asyncio.sleep(0.001)
