"""Which process of the tests runs which file."""

from __future__ import annotations

from types import SimpleNamespace

from tests.support.scheduling import ON_RAY, Scheduling

FILES = (
    "tests/integration/test_a.py", *ON_RAY, "tests/contracts/test_z.py", "tests/laws/test_b.py",
    "tests/unit/planner/test_c.py",
)  # fmt: skip
TESTS = [f"{file}::test_{number}" for file in FILES for number in range(3)]


class Node:
    """A process: what it was asked to run."""

    def __init__(self, name: str) -> None:
        self.gateway, self.shutting_down, self.asked = SimpleNamespace(id=name), False, []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.asked += dict.fromkeys(TESTS[index].split("::")[0] for index in indices)

    def shutdown(self) -> None:
        self.shutting_down = True


def test_the_last_process_begins_with_what_computes_and_one_has_all_that_runs_on_ray() -> None:
    options = SimpleNamespace(loadscopereorder=False, tx=["3*popen"])
    config = SimpleNamespace(option=options, getvalue=lambda name: getattr(options, name))
    scheduling, nodes = Scheduling(config), [Node(f"gw{number}") for number in range(3)]
    for node in nodes:
        scheduling.add_node(node)
        scheduling.add_node_collection(node, TESTS)
    scheduling.schedule()
    assert [node.asked for node in nodes] == [[FILES[0]], [*ON_RAY], ["tests/laws/test_b.py"]]
    for index, test in enumerate(TESTS):
        if test.startswith("tests/laws/"):
            scheduling.mark_test_complete(nodes[2], index)
    assert nodes[2].asked == ["tests/laws/test_b.py", "tests/unit/planner/test_c.py"]
