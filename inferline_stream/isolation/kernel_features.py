"""What this machine's kernel offers to isolate replicas."""

from __future__ import annotations

import os

from inferline_stream.isolation import kernel_calls, landlock, limits, syscall_rules


def kernel_features() -> dict[str, str]:
    """Each ability by name, and what there is of it."""
    name = os.uname()
    on = syscall_rules.machine()
    version = landlock.abi() if on is not None else 0
    files = "files" if version else "nothing"
    found = {
        "system": f"{name.sysname} {name.release} {name.machine}",
        "Landlock": f"version {version}: {files}"
        + (", TCP ports" if version >= landlock.NETWORK_ABI else "")
        + (", signals and abstract sockets" if version >= landlock.SCOPE_ABI else ""),
        "seccomp": "filters" if kernel_calls.status("Seccomp") is not None else "none",
    }
    if on is not None:
        own = os.getpid()
        sealed, imports = syscall_rules.sealed(own), syscall_rules.sealed(own, imports=True)
        counts = [syscall_rules.reachable(calls, on) for calls in (syscall_rules.launching(own), imports, sealed)]
        found["system calls"] = "{} of {} while starting, {} with imports, {} sealed".format(
            counts[0], len(on.numbers), *counts[1:]
        )
    groups = [
        controller
        for controller in ("memory", "pids")
        if (folder := limits.own_group(controller)[0]) is not None and os.access(folder, os.W_OK)
    ]
    alone = "" if "memory" in groups else "; missing: memory_mb holds for each process alone, shared mappings escape it"
    found["control groups"] = (", ".join(groups) or "not ours to make") + alone
    return found
