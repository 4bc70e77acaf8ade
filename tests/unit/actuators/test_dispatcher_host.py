"""What a dispatcher's host keeps over restarts of its process."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from inferline_stream.actuators.network.dispatcher_host import _starts


def test_starts_are_counted_on_after_one_for_which_the_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [_starts(tmp_path), _starts(tmp_path)] == [0, 1]

    def full(file: Path, text: str) -> int:
        file.open("w").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            _starts(tmp_path)
    assert _starts(tmp_path) == 2
