"""What a dispatcher's host keeps from one start to the next."""

from pathlib import Path

from inferline_stream.actuators.network.dispatcher_host import _starts


def test_a_start_that_was_killed_as_it_was_counted_ends_no_later_one(tmp_path: Path) -> None:
    (tmp_path / "starts").touch()
    assert [_starts(tmp_path) for _ in range(3)] == [0, 1, 2]
