"""A real replica process, driven by frames."""

import socket
import sys
from pathlib import Path

import pytest

from inferline_stream.dataplane.frames import Batch, Broken, Done, Failed, Leave, Many, Ready, Results, Returned, Sleep
from inferline_stream.dataplane.replica.replica import LEAVE
from inferline_stream.pipeline.fallback import FALLBACK, MAIN
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.support.model_server import model_server_process
from tests.support.sandbox import needs_sandbox
from tests.unit.dataplane.replica.replica_process import DEADLINE_S, replica

TOPOLOGY = """
import ctypes, os, time
from inferline_stream import Pipeline, Stage, Topic

def small(result: int) -> bool:
    return result < 10

class Work:
    def __init__(self) -> None:
        {init}

    def __call__(self, numbers: list[int]) -> list[int]:
        if 13 in numbers:
            raise ValueError("thirteen")
        if 14 in numbers:
            return []
        if 15 in numbers:
            raise MemoryError
        if 16 in numbers:
            print("the stage prints", flush=True)
        if 17 in numbers:
            print("x" * 100_000)
        return [number + 1 for number in numbers]

def rest(numbers: list[int]) -> list[int]:
    return numbers

def hold(seconds):
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # with the interpreter's lock

work = Stage("work", Work, hardware=["cpu-1"])
a = Stage("a", rest, hardware=["cpu-1"], after=[work.when(small)])
b = Stage("b", rest, hardware=["cpu-1"], after=[work])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[b, work, a])
"""
PLAIN = TOPOLOGY.replace("{init}", "pass")

levels = pytest.mark.parametrize(
    "isolation",
    [
        Isolation("none"),
        pytest.param(
            Isolation("sandbox"),
            marks=needs_sandbox,
        ),
    ],
    ids=["plain", "sealed"],
)


@levels
def test_a_batch_comes_back_as_an_outcome_per_event_in_order(tmp_path: Path, isolation: Isolation) -> None:
    with replica(tmp_path, PLAIN, isolation=isolation) as running:
        dispatcher = running.attach()
        ready = dispatcher.receive()
        assert isinstance(ready, Ready)
        assert ready.isolation is not None
        assert ready.isolation.sealed == (isolation.level == "sandbox")
        assert not ready.fallback
        assert 0 < ready.start_up_s < 60
        results = dispatcher.results(Batch(7, 1, [b"1", b"no number", b"13", b"9", b"16"]))
        assert (results.epoch, results.batch) == (7, 1)
        one, unreadable, thirteen, nine, sixteen = results.outcomes
        children = ["b", "a"]  # in topological order, which is the order of declaration between equals
        assert one == Done(b"2", 1 << children.index("b") | 1 << children.index("a"))
        assert (nine, sixteen) == (Done(b"10", 1 << children.index("b")), Done(b"17", 1 << children.index("b")))
        assert isinstance(unreadable, Failed)
        assert isinstance(thirteen, Failed)
        assert thirteen.summary.endswith("in __call__: ValueError: thirteen")
        assert sum(call.batch_size for call in results.calls) == 3
        dispatcher.send(Leave())
        code, said = running.wait()
    assert code == 0
    assert "the stage prints" in said


def test_a_log_on_a_full_disk_fails_no_event_and_no_replica(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full, replica(tmp_path, PLAIN, log=full.fileno()) as running:
        dispatcher = running.attach()
        dispatcher.receive()
        results = dispatcher.results(Batch(1, 1, [b"16", b"17"]))
        assert [type(outcome) for outcome in results.outcomes] == [Done, Done]
        dispatcher.send(Leave())
        assert running.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("event", "reason", "memory"),
    [(b"14", "returned 0 results for a batch of 2; return one per event", False), (b"15", "out of memory", True)],
)
def test_a_stage_that_breaks_its_contract_ends_its_replica(
    tmp_path: Path, event: bytes, reason: str, memory: bool
) -> None:
    with replica(tmp_path, PLAIN) as running:
        dispatcher = running.attach()
        dispatcher.receive()
        dispatcher.send(Batch(1, 1, [b"1", event]))
        broken = dispatcher.receive()
        assert isinstance(broken, Broken)
        assert (broken.memory, reason in broken.reason) == (memory, True)
        assert running.wait()[0] == 70


REPEATING = """
from inferline_stream import Pipeline, Stage, Topic

def repeat(numbers: list[int]) -> list[str]:
    return ["x" * number for number in numbers]

stage = Stage("work", repeat, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
"""


def test_a_result_that_would_make_the_answer_too_long_fails_and_the_others_come(tmp_path: Path) -> None:
    with replica(tmp_path, REPEATING) as running:
        dispatcher = running.attach()
        assert isinstance(dispatcher.receive(), Ready)
        results = dispatcher.results(Batch(7, 1, [b"1", b"2000000", b"2"], result_bytes=1000))
    oversize = Failed("Oversize", "the result has 2000002 bytes, 1000 are taken", "")
    assert results.outcomes == [Done(b'"x"', 0), oversize, Done(b'"xx"', 0)]


FALLING_BACK = """
import msgspec
from inferline_stream import Pipeline, Result, Stage, Topic

class Part(msgspec.Struct):
    text: str
    made_by: str = ""

def letters(words: list[str]) -> list[list[Part]]:
    return [[Part(letter) for letter in word] for word in words]

def whole(words: list[str]) -> list[list[Part]]:
    return [[Result(Part(word), key="own"), None] if word else None for word in words]

stage = Stage("work", letters, fallback=whole, many=True, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
"""


def test_each_of_many_results_names_the_version_of_the_stage_that_made_it(tmp_path: Path) -> None:
    def part(text: str, made_by: str, key: bytes | None = None) -> Done:
        return Done(b'{"text":"%s","made_by":"%s"}' % (text.encode(), made_by.encode()), 0, key)

    with replica(tmp_path, FALLING_BACK) as running:
        dispatcher = running.attach()
        ready = dispatcher.receive()
        assert isinstance(ready, Ready)
        assert ready.fallback
        found = []
        for version in (MAIN, FALLBACK):
            results = dispatcher.results(Batch(7, 1 + version, [b'"ab"', b'""'], version=version))
            found.append(results.outcomes)
    by_letters = Many((part("a", "main"), part("b", "main")))
    assert found == [[by_letters, Many()], [Many((part("ab", "fallback", b"own"),)), Many()]]


SERVED = """
from inferline_stream import OpenInference, Pipeline, Stage, Topic

def ask(number: int) -> dict[str, int]:
    return {{"number": number}}

def answer(outputs: dict) -> int:
    return int(outputs["doubled"])

def model(name: str) -> OpenInference:
    return OpenInference("{url}", model=name, request=ask, response=answer)

stage = Stage("work", server=model("double"), fallback=model("triple"), hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
"""


def test_a_served_stage_and_its_fallback_ask_two_models_of_one_server(tmp_path: Path) -> None:
    with model_server_process() as server, replica(tmp_path, SERVED.format(url=server.url)) as running:
        dispatcher = running.attach()
        ready = dispatcher.receive()
        assert isinstance(ready, Ready)
        assert ready.fallback
        for number, (version, times) in enumerate([(MAIN, 2), (FALLBACK, 3), (MAIN, 2)]):
            results = dispatcher.results(Batch(7, 1 + number, [b"5", b"7"], version=version))
            assert results.outcomes == [Done(b"%d" % (times * event), 0) for event in (5, 7)]


SLEEPER = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    asleep = False
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with open("asked", "a") as file:
            file.write(f"{self.path} {Handler.asleep}\\n")
        if self.path in ("/sleep?level=1", "/wake_up"):
            Handler.asleep = self.path != "/wake_up"
        if self.path == "/sleep?level=1" and os.path.exists("slow"):
            time.sleep(2.0)
        self.send_response(503 if Handler.asleep and self.path == "/double" else 200)
        self.end_headers()
        self.wfile.write(str(2 * int(body or 0)).encode())
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
SLEEPS = f"""
from inferline_stream import Pipeline, RayServe, Stage, Topic

def same(number: int) -> int:
    return number

server = RayServe(
    "http://127.0.0.1:{{port}}/double",
    request=same,
    response=same,
    command="{sys.executable} sleeper.py {{port}}",
    sleep="/sleep?level=1",
    wake="/wake_up",
    timeout="500ms",
)
stage = Stage("work", server=server, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
"""


def test_the_server_that_a_replica_starts_sleeps_when_asked_and_wakes_with_the_next_batch(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    with replica(tmp_path, SLEEPS) as running:
        dispatcher = running.attach()
        dispatcher.receive()
        for number in range(1, 4):
            if number > 1:
                dispatcher.send(Sleep())
                dispatcher.send(Sleep())
            results = dispatcher.results(Batch(7, number, [b"5"]))
            assert results.outcomes == [Done(b"10", 0)]
    slept = ["/sleep?level=1 False", "/wake_up True", "/double False"]
    assert (tmp_path / "asked").read_text().splitlines() == ["/double False", *slept, *slept]


def test_a_server_that_takes_longer_to_fall_asleep_than_any_answer_may_is_woken_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "slow").touch()
    with replica(tmp_path, SLEEPS) as running:
        dispatcher = running.attach()
        dispatcher.receive()
        dispatcher.send(Sleep())
        assert dispatcher.results(Batch(7, 1, [b"5"])).outcomes == [Done(b"10", 0)]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["/sleep?level=1 False", "/wake_up True", "/double False"]


def test_a_new_dispatcher_finds_the_same_process(tmp_path: Path) -> None:
    with replica(tmp_path, PLAIN) as running:
        first = running.attach()
        first.receive()
        first.send(Batch(1, 1, [b"1"]))
        first.receive()
        first.socket.close()
        second, third = running.attach(), running.attach()
        second.receive()
        assert second.receive() is None  # replaced by the third
        assert isinstance(third.receive(), Ready)
        third.send(Batch(2, 1, [b"1"]))
        assert isinstance(third.receive(), Results)
        running.channel.send(LEAVE)
        assert running.wait()[0] == 0


def test_a_replica_without_a_supervisor_ends(tmp_path: Path) -> None:
    with replica(tmp_path, PLAIN) as running:
        running.attach().receive()
        running.channel.shutdown(socket.SHUT_RDWR)
        assert running.wait()[0] == 0


def test_damaged_frames_cost_the_connection_and_not_the_replica(tmp_path: Path) -> None:
    with replica(tmp_path, PLAIN) as running:
        first = running.attach()
        first.receive()
        first.socket.sendall(b"no frame at all")
        assert first.receive() is None
        assert isinstance(running.attach().receive(), Ready)


def test_a_constructor_that_holds_the_interpreter_is_only_late(tmp_path: Path) -> None:
    with replica(tmp_path, TOPOLOGY.replace("{init}", "hold(3)")) as running:
        dispatcher = running.attach()
        ready = dispatcher.receive()
        assert isinstance(ready, Ready)
        assert ready.start_up_s >= 3


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (TOPOLOGY.replace("{init}", "open('/nowhere/model')"), "cannot be built"),
        ("pipeline = 3", "declares no pipeline"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_stage_that_cannot_be_loaded_says_why_in_one_line(tmp_path: Path, code: str, reason: str) -> None:
    with replica(tmp_path, code) as running:
        status, said = running.wait()
    assert status == 3
    assert reason in said.strip().splitlines()[-1]


@needs_sandbox
def test_no_socket_survives_the_seal_but_pairs(tmp_path: Path) -> None:
    init = """import socket
        try:
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        except PermissionError:
            self.udp = None
        self.pair = socket.socketpair()
        assert self.udp is {udp}, self.udp"""
    for ports, udp in (((), "None"), ((9,), "not None")):
        code = TOPOLOGY.replace("{init}", init.replace("is {udp}", "is " + udp)).replace(
            "if 13 in numbers:",
            "self.pair[0].send(b'x'); assert self.pair[1].recv(1) == b'x'\n"
            "        if self.udp and numbers: self.udp.sendto(b'x', ('127.0.0.1', 9))\n"
            "        if 13 in numbers:",
        )
        with replica(tmp_path, code, isolation=Isolation(ports=ports)) as running:
            dispatcher = running.attach()
            ready = dispatcher.receive()
            assert isinstance(ready, Ready), running.wait()
            results = dispatcher.results(Batch(1, 1, [b"1"]))
            (outcome,) = results.outcomes
            if ports:
                assert isinstance(outcome, Failed)
                assert "Socket operation on non-socket" in outcome.message
            else:
                assert isinstance(outcome, Done)


@needs_sandbox
def test_a_sealed_stage_may_start_threads(tmp_path: Path) -> None:
    code = PLAIN.replace(
        "if 13 in numbers:",
        "import threading\n"
        "        seen = []\n"
        "        thread = threading.Thread(target=lambda: seen.append(1)); thread.start(); thread.join()\n"
        "        assert seen == [1]\n"
        "        if 13 in numbers:",
    )
    with replica(tmp_path, code, isolation=Isolation()) as running:
        dispatcher = running.attach()
        dispatcher.receive()
        results = dispatcher.results(Batch(1, 1, [b"1"]))
        assert isinstance(results.outcomes[0], Done)


FULL = """
from inferline_stream import Pipeline, Stage, Topic

def work(numbers: list[int]) -> list[int]:
    if sum(numbers) > 10:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return numbers

work = Stage("work", work, hardware=["t4"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""


def test_a_replica_on_a_full_device_answers_in_smaller_batches_and_ends_where_one_event_is_too_large(
    tmp_path: Path,
) -> None:
    with replica(tmp_path, FULL, hardware=Hardware("t4", 0.5, gpus=1)) as running:
        dispatcher = running.attach()
        assert isinstance(dispatcher.receive(), Ready)
        results = dispatcher.results(Batch(1, 1, [b"4", b"4", b"4", b"4"]))
        assert (results.outcomes, results.too_large) == ([Done(b"4", 0)] * 4, 4)
        assert [call.batch_size for call in results.calls] == [2, 2]
        dispatcher.send(Batch(1, 2, [b"11"]))
        broken = dispatcher.receive()
        assert isinstance(broken, Broken)
        assert (broken.memory, broken.device) == (True, True)
        assert "a batch of 1 is too large for this device" in broken.reason
        assert running.wait()[0] == 70


WAITING = """
import asyncio
from inferline_stream import Pipeline, ServerUnavailable, Stage, Topic

class Work:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.together = asyncio.Event()
        self.under_way = 0

    async def __call__(self, numbers: list[int]) -> list[int]:
        assert asyncio.get_running_loop() is self.loop
        if 7 in numbers:
            raise ServerUnavailable("the oracle is away", 3.0)
        if 13 in numbers:
            raise ValueError("thirteen")
        if 14 in numbers:
            return []
        self.under_way += 1
        if self.under_way == 2:
            self.together.set()
        await self.together.wait()
        return [number + 1 for number in numbers]

work = Stage("work", Work, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""


@levels
def test_an_asynchronous_stage_runs_batches_together_and_fails_alone(tmp_path: Path, isolation: Isolation) -> None:
    with replica(tmp_path, WAITING, isolation=isolation) as running:
        dispatcher = running.attach()
        assert isinstance(dispatcher.receive(), Ready)
        dispatcher.send(Batch(7, 1, [b"1", b"2"]))
        dispatcher.send(Batch(7, 2, [b"7"]))
        away = dispatcher.receive()
        assert away == Returned(7, 2, "the oracle is away", 3.0)
        dispatcher.send(Batch(7, 3, [b"13", b"3"]))  # halved: its 3 is what the first batch waits for
        by_number = {frame.batch: frame for frame in (dispatcher.receive(), dispatcher.receive())}
        assert [outcome.value for outcome in by_number[1].outcomes] == [b"2", b"3"]
        thirteen, three = by_number[3].outcomes
        assert isinstance(thirteen, Failed)
        assert "in __call__" in thirteen.where
        assert three.value == b"4"
        dispatcher.send(Batch(7, 4, [b"14"]))
        assert isinstance(dispatcher.receive(), Broken)
        code, said = running.wait()
    assert (code, said.splitlines()[-1]) == (70, "returned 0 results for a batch of 1; return one per event")


def test_an_asynchronous_replica_that_is_asked_to_leave_finishes_what_it_has_in_hand(tmp_path: Path) -> None:
    with replica(tmp_path, WAITING) as running:
        dispatcher = running.attach()
        assert isinstance(dispatcher.receive(), Ready)
        dispatcher.send(Batch(1, 1, [b"1"]))
        dispatcher.send(Batch(1, 2, [b"7"]))
        assert isinstance(dispatcher.receive(), Returned)
        running.channel.send(LEAVE)
        dispatcher.send(Batch(1, 3, [b"2"]))
        assert {dispatcher.receive().batch, dispatcher.receive().batch} == {1, 3}
        assert running.wait()[0] == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_last_words_of_a_stage_that_ends_its_process_at_once_are_in_the_log(
    unbuffered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    ends = "import sys; sys.stderr.write('the licence has expired\\n'); os._exit(3)"
    with replica(tmp_path, TOPOLOGY.replace("{init}", ends)) as running:
        assert running.wait() == (3, "the licence has expired\n")
