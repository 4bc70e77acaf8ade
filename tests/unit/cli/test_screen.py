from dataclasses import replace

from inferline_stream.cli.screen import isolation_words
from inferline_stream.observability.state import IsolationState

SEALED = IsolationState("sandbox", 2, 2, 7, (9092,), 76, {})


def test_isolation_is_told_in_words_with_the_runtime_around_the_seal_where_it_is_there() -> None:
    assert isolation_words(SEALED) == "sealed, 76 calls"
    assert isolation_words(replace(SEALED, level="kata", sealed=1)) == "1/2 sealed within kata, 76 calls"
    absent = replace(SEALED, level="gvisor", missing=("gvisor: nothing tells of it",))
    assert isolation_words(absent) == "[bold yellow]sealed, 76 calls: gvisor: nothing tells of it[/]"
