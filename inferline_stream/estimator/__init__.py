"""Discrete-event simulation of a plan on a trace: the latency of every event, exactly. Pure.

`simulation.simulate` is what most callers want; `workload`, `station` and `evaluation` are its parts, for anyone who
simulates many plans on one trace. A stage needs only its arrivals in order, so that the pipeline is simulated stage
by stage (`evaluation`): `feeds` says where a stage's arrivals come from, `stage_arrivals` puts them together and draws
their hops, `stage_pools` deals them to the queues of the stage's slots. A queue is a `shared_pool`, which is fast, or a
`general_pool`, which has everything: also replicas that come and go, so that `replay` runs on it. The loops are in
`kernels`, `shared_queue` and `general_queue`, made machine code by `numba_kernels`; the rules they obey are written in
`kernels` and once more, as one heap of events, in `tests.support.event_heap`, with which they agree bit for bit.
"""
