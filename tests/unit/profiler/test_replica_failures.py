"""Why a replica on the profiler's bench has ended, in words."""

from inferline_stream.profiler.replica_failures import ReplicaFailed


def test_a_signal_is_named() -> None:
    said = str(ReplicaFailed.ended(-11, "", "killed by SIGSEGV", built=False))
    assert said == "its process was killed by SIGSEGV: it wrote nothing"
    assert str(ReplicaFailed.ended(7, "bye", "exit code 7: bye", built=True)).endswith("ended with exit code 7: bye")
