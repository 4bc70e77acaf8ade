"""Discrete-event simulation of a plan on a trace: the latency of every event, exactly. Pure.

`simulation.simulate` is what most callers want; `workload`, `station` and `evaluation` are its parts, for anyone who
simulates many plans on one trace. A stage needs only its arrivals in order, so that the pipeline is simulated stage
by stage (`evaluation`): `feeds` says where a stage's arrivals come from, `join_arrivals` puts them together,
`server`, `keyed_server`, `slotted_server` and `fixed_owner_server` serve them, `delay` draws their hops. The loops
are in `kernels`, `shared_queue`, `keyed_queue`, `fixed_owner_kernels` and `batch_order`, made machine code by
`numba_kernels`; the rules they obey are written in `kernels` and once more, as one heap of events, in
`tests.support.event_heap`, with which they agree bit for bit.
"""
