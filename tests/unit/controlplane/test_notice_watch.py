"""A host's own notices: a file that appears and an address that answers are each passed on once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from aiohttp import web

from inferline_stream.controlplane.observe.notice_watch import NoticeWatch
from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.errors import Unreachable
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.spot import Spot


def watch(where: str, heard: list[Override]) -> NoticeWatch:
    async def say(notice: Override) -> None:
        heard.append(notice)

    return NoticeWatch(catalogue([Hardware("x", 1.0, spot=Spot(0.3, "30s", notice_at=where))]), say)


async def test_a_file_is_a_notice_while_it_is_there(tmp_path: Path) -> None:
    file, heard = tmp_path / "notice", list[Override]()
    looking = watch(str(file), heard)
    await looking.step()
    assert heard == []
    file.touch()
    for _ in range(3):
        await looking.step()
    (notice,) = heard
    assert (notice.kind, notice.subject, notice.value) == ("notice", "x-spot", 30.0)
    file.unlink()
    await looking.step()
    file.touch()
    await looking.step()
    assert len(heard) == 2, "it may be taken a second time"


async def test_a_notice_that_could_not_be_written_down_is_passed_on_again(tmp_path: Path) -> None:
    heard, away = list[Override](), [True]

    async def say(notice: Override) -> None:
        if away:
            raise Unreachable("Kafka does not answer")
        heard.append(notice)

    file = tmp_path / "notice"
    file.touch()
    looking = NoticeWatch(catalogue([Hardware("x", 1.0, spot=Spot(0.3, "30s", notice_at=str(file)))]), say)
    with pytest.raises(Unreachable):
        await looking.step()
    away.clear()
    for _ in range(2):
        await looking.step()
    assert [notice.subject for notice in heard] == ["x-spot"]


@pytest.mark.parametrize(
    ("status", "said", "left_s"),
    [
        (404, "not found", None),
        (200, "FALSE", None),
        (200, "TRUE", 30.0),
        (200, '{"action": "terminate", "time": "TIME"}', 90.0),
        (200, '{"time": "9999-12-31T23:59:59Z"}', 1e9),
        (200, "[" * 4096, 30.0),
        (200, '{"action": "terminate", "time": "soon"}', 30.0),
    ],
)
async def test_an_address_is_asked_as_clouds_want_it(status: int, said: str, left_s: float | None) -> None:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 90.0))
    heard, headers = list[Override](), list[str | None]()

    async def answer(request: web.Request) -> web.Response:
        headers.append(request.headers.get("Metadata-Flavor"))
        return web.Response(status=status, text=said.replace("TIME", at))

    app = web.Application()
    app.router.add_get("/preempted", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        await watch(f"http://{host}:{port}/preempted", heard).step()
    finally:
        await runner.cleanup()
    assert headers == ["Google"]
    assert [notice.value for notice in heard] == ([] if left_s is None else [pytest.approx(left_s, abs=5.0)])
