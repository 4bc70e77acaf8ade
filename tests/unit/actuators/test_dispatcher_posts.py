"""Posts of dispatchers; what would start, stop and kill them only remembers."""

from __future__ import annotations

import asyncio

from inferline_stream.actuators.dispatcher_posts import Post, Posts
from inferline_stream.dataplane.process_specs import DispatcherSpec
from tests.unit.dataplane.dispatcher.doubles import routes


async def test_a_dispatcher_that_is_replaced_between_two_starts_leaves_its_slot_to_its_successor_alone() -> None:
    dealt: list[set[int]] = []
    exits: asyncio.Queue[object] = asyncio.Queue()

    def start(post: Post) -> None:
        post.pid = 1

    def remember(stage: str) -> None:
        dealt.append(posts.slots(stage))

    posts = Posts(exits, start, lambda post: None, lambda post: None, remember, drain_timeout_s=1.0)  # type: ignore[arg-type]
    of = routes()
    first, other, second = (
        DispatcherSpec(name, slot, of, "127.0.0.1:9") for name, slot in (("a", 0), ("b", 1), ("c", 0))
    )
    posts.dispatch("work", [first, other])
    post = posts.of("a")
    assert post is not None
    posts.ended(post, -9, "killed")
    posts.ended(post, -9, "killed again")  # now it waits
    dealt.clear()
    posts.dispatch("work", [second, other])
    assert posts.of("a") is None
    assert all(slots == {0, 1} for slots in dealt)


async def test_a_dispatcher_that_waits_to_be_started_again_is_on_no_node() -> None:
    def start(post: Post) -> None:
        post.pid, post.node = 1, "n"

    posts = Posts(asyncio.Queue(), start, lambda post: None, lambda post: None, lambda stage: None, drain_timeout_s=1.0)
    posts.dispatch("work", [DispatcherSpec("a", 0, routes(), "127.0.0.1:9")])
    post = posts.of("a")
    assert post is not None
    for _ in range(2):
        posts.ended(post, -9, "killed")
    (seen,) = posts.observe()
    assert (seen.pid, seen.node) == (None, "")
