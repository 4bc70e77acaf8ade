from inferline_stream.profiler.profiling_options import Progress, Steps


def test_a_note_says_how_far_the_step_under_way_has_come() -> None:
    reported: list[Progress] = []
    steps = Steps(reported.append, 2)
    steps.begin("embed on cpu-1")
    steps.within(0.75)
    steps.note("batch sizes above 8 do not fit")
    assert [(progress.done, progress.note) for progress in reported] == [
        (0.0, ""),
        (0.75, ""),
        (0.75, "batch sizes above 8 do not fit"),
    ]
