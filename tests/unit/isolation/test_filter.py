"""The filters, by running them over every system call with every class of argument; no kernel needed."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.isolation import bpf, syscall_rules
from inferline_stream.isolation.bpf import ALLOW, ALWAYS, KILL, Architecture, ArgumentCondition, refused

X86_64, AARCH64 = syscall_rules.MACHINES["x86_64"], syscall_rules.MACHINES["aarch64"]
ME = 4711
ALL_BITS = (1 << 64) - 1

NEVER_HELD = """
    accept accept4 acct add_key bind bpf capset chroot clone3 delete_module execve execveat fanotify_init fork
    fsopen init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_load keyctl kill listen
    memfd_create memfd_secret mknod mount move_mount name_to_handle_at open_by_handle_at open_tree perf_event_open
    personality pidfd_getfd pidfd_open pidfd_send_signal pivot_root pkey_mprotect process_madvise process_vm_readv
    process_vm_writev ptrace reboot request_key rt_sigqueueinfo rt_tgsigqueueinfo setns setuid splice swapon
    syslog tkill umount2 unshare userfaultfd vfork vmsplice
""".split()  # noqa: SIM905
"""Never allowed in any profile, written down apart from the profiles."""

STRICT = """
    brk clock_getres clock_gettime clock_nanosleep close dup epoll_create1 epoll_ctl epoll_pwait epoll_wait exit
    exit_group fstat futex getcpu getpid getrandom getrusage getsockname getsockopt gettid gettimeofday lseek
    madvise mremap munmap nanosleep pipe2 poll ppoll pread64 read readv recvfrom recvmsg restart_syscall rseq
    rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield set_robust_list sigaltstack sysinfo uname
    write writev
""".split()  # noqa: SIM905
"""Allowed whatever the arguments once sealed."""

CONNECTED = """
    connect epoll_pwait2 eventfd2 getegid geteuid getgid getpeername getppid getuid pselect6 select setitimer
    setsockopt shutdown time times
""".split()  # noqa: SIM905
"""Allowed besides to a process that has a network."""

INTERESTING = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 10, 15, 16, 17, 38, 40, 44, 132, 262, 0x801, 0x80801, 0x1000, 0x5401, 0x5412, 0x541B),
    *(0x5421, 0x5450, 0x5451, 1030, 0x3D0F00, 0x3D0F00 | 1 << 28, 0x01200011, 0x20000000, 0x20004000, 0x10000000),
    *(ME, 0o102, 0o1101, 0o2000000, 0o20200000, 1 << 32, (1 << 32) + 2, 0xFFFFFFFF, ALL_BITS),
)


CHECKS: dict[str, Callable[[tuple[int, ...], list[int], bool], bool]] = {
    "newfstatat": lambda _, low, network: bool(low[3] & 0x1000),
    "fcntl": lambda _, low, network: low[1] in (1, 2, 3, 4, 1030),
    "ioctl": lambda _, low, network: low[1] in (0x5401, 0x541B, 0x5421, 0x5450, 0x5451),
    "mmap": lambda _, low, network: not low[2] & 4,
    "mprotect": lambda _, low, network: not low[2] & 4,
    "clone": lambda whole, low, network: whole[0] == 0x3D0F00,
    "tgkill": lambda _, low, network: low[0] == ME,
    "prctl": lambda _, low, network: low[0] in (15, 16),
    "prlimit64": lambda whole, low, network: low[0] == 0 and whole[2] == 0,
    "socket": lambda _, low, network: network and low[0] in (2, 10) and low[1] & 0xF == 1 and low[2] in (0, 6),
    "socketpair": lambda _, low, network: low[0] == 1 and low[1] & 0xF in (1, 5),  # of a stream, or of whole messages
    "sendto": lambda whole, low, network: not low[3] & 0x20000000 and (network or not whole[4]),
    "sendmsg": lambda _, low, network: not low[2] & 0x20000000,
}
"""What each argument-checked call may be given once sealed, from its manual page rather than from the profile: by the
arguments, their lower halves, and whether there is a network."""


def checked(arguments: tuple[int, ...], name: str, *, network: bool) -> bool:
    """Whether a call may be made once sealed."""
    if name in CHECKS:
        return CHECKS[name](arguments, [argument & 0xFFFFFFFF for argument in arguments], network)
    return name in STRICT or (network and name in CONNECTED)


def verdicts(calls: bpf.Calls, on: Architecture) -> Iterator[tuple[int, str, tuple[int, ...], int]]:
    """(number, name, arguments, verdict) for every number and class of arguments.

    Where neither the filter nor `CHECKS` looks at a call's arguments, one class stands for all.
    """
    program = syscall_rules.program(calls, on)
    names = {number: name for name, number in on.numbers.items()}
    for number in range(max(names) + 100):
        name = names.get(number, "")
        whatever = bpf.verdict(program, on.audit, number, None)
        for arguments in classes(name) if whatever is None or name in CHECKS else [(0,) * 6]:
            found = bpf.verdict(program, on.audit, number, arguments) if whatever is None else whatever
            assert found is not None
            yield number, name, arguments, found


def classes(name: str) -> Iterator[tuple[int, ...]]:
    """Arguments to try: every interesting value in each place beside small ones, and three places together."""
    for at, value in itertools.product(range(6), INTERESTING):
        for others in (0, 2, 1):
            arguments = [others] * 6
            arguments[at] = value
            yield tuple(arguments)
    if name in ("socket", "socketpair", "prlimit64"):
        few = (0, 1, 2, 3, 5, 6, 10, 16, 17, 0x80801, 262, (1 << 32) + 2)
        yield from ((*three, 0, 0, 0) for three in itertools.product(few, repeat=3))


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
@pytest.mark.parametrize("network", [False, True])
def test_a_sealed_process_may_make_exactly_the_calls_written_down_here(on: Architecture, network: bool) -> None:
    for number, name, arguments, found in verdicts(syscall_rules.sealed(ME, network=network), on):
        assert (found == ALLOW) == checked(arguments, name, network=network), (name or number, arguments)


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
def test_without_a_network_no_socket_is_made_from_the_first_import_on(on: Architecture) -> None:
    for calls in (syscall_rules.launching(ME), syscall_rules.sealed(ME), syscall_rules.sealed(ME, imports=True)):
        allowed = {name for _, name, _, found in verdicts(calls, on) if found == ALLOW}
        assert not allowed & {"socket", "connect", "bind", "listen", "sendmmsg"}


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
@pytest.mark.parametrize("imports", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_what_no_profile_may_have_no_profile_has(on: Architecture, imports: bool, jit: bool) -> None:
    for calls in (syscall_rules.sealed(ME, imports=imports, jit=jit), syscall_rules.launching(ME, jit=jit)):
        assert not {name for _, name, _, found in verdicts(calls, on) if found == ALLOW} & set(NEVER_HELD)


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
@pytest.mark.parametrize("forks", [False, True])
def test_a_starting_process_names_nobody_whom_the_kernel_signals_for_a_file(on: Architecture, forks: bool) -> None:
    program = syscall_rules.program(syscall_rules.launching(ME, forks=forks, network=True, helpers=True), on)

    def answer(name: str, command: int) -> int | None:
        return bpf.verdict(program, on.audit, on.numbers[name], (3, command, ME))

    # fcntl(2): F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY; socket(7): FIOSETOWN, SIOCSPGRP.
    refusing = [("fcntl", number) for number in (8, 10, 15, 1024, 1026)] + [("ioctl", 0x8901), ("ioctl", 0x8902)]
    assert {answer(*each) for each in refusing} == {refused(errno.EPERM)}
    # F_DUPFD, F_SETFL, F_SETLK, F_OFD_SETLKW, F_DUPFD_CLOEXEC; TCGETS, TIOCGWINSZ, FIONREAD, a driver's.
    useful = [("fcntl", number) for number in (0, 4, 6, 38, 1030)]
    useful += [("ioctl", number) for number in (0x5401, 0x5413, 0x541B, 0xC00846D6, 0x8900, 0x8903)]
    assert {answer(*each) for each in useful} == {ALLOW}


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
def test_a_connector_may_cut_its_file_or_accept_at_its_port_and_nothing_else_besides(on: Architecture) -> None:
    def allowed(calls: bpf.Calls) -> set[str]:
        return {name for _, name, _, found in verdicts(calls, on) if found == ALLOW}

    plain = allowed(syscall_rules.sealed(ME))
    assert allowed(syscall_rules.sealed(ME, writes=True)) - plain == {"ftruncate", "fsync"}
    assert allowed(syscall_rules.sealed(ME, serves=True)) - plain == {"accept4"}
    starting = allowed(syscall_rules.launching(ME))
    assert allowed(syscall_rules.launching(ME, serves=True)) - starting == {"bind", "listen", "accept4"}


def test_few_system_calls_are_left() -> None:
    for on in (X86_64, AARCH64):
        assert syscall_rules.reachable(syscall_rules.sealed(ME), on) <= 60
        assert syscall_rules.reachable(syscall_rules.sealed(ME, imports=True), on) <= 70
        assert syscall_rules.reachable(syscall_rules.sealed(ME, network=True), on) <= 80
        assert syscall_rules.reachable(syscall_rules.launching(ME), on) <= 160


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
def test_what_is_counted_as_reachable_is_what_the_filter_lets_through(on: Architecture) -> None:
    for calls in (syscall_rules.sealed(ME), syscall_rules.sealed(ME, imports=True), syscall_rules.launching(ME)):
        through = {number for number, _, _, found in verdicts(calls, on) if found == ALLOW}
        assert len(through) == syscall_rules.reachable(calls, on)


def test_calls_of_another_machine_and_of_x32_end_the_process() -> None:
    program = syscall_rules.program(syscall_rules.sealed(ME), X86_64)
    i386 = 0x40000003
    for number in range(500):
        assert bpf.verdict(program, AARCH64.audit, number) == KILL
        assert bpf.verdict(program, i386, number) == KILL
        assert bpf.verdict(program, X86_64.audit, 0x40000000 | number) == KILL


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
def test_calls_that_libraries_can_do_without_seem_not_to_exist(on: Architecture) -> None:
    program = syscall_rules.program(syscall_rules.sealed(ME), on)
    assert bpf.verdict(program, on.audit, on.numbers["clone3"]) == refused(errno.ENOSYS)  # else no thread starts
    assert bpf.verdict(program, on.audit, max(on.numbers.values()) + 1) == refused(errno.ENOSYS)
    assert bpf.verdict(program, on.audit, on.numbers["execve"]) == refused(errno.EPERM)


def test_a_verdict_that_does_not_depend_on_the_arguments_needs_none() -> None:
    program = syscall_rules.program(syscall_rules.sealed(ME), X86_64)
    assert bpf.verdict(program, X86_64.audit, X86_64.numbers["read"], None) == ALLOW
    assert bpf.verdict(program, X86_64.audit, X86_64.numbers["mmap"], None) is None


def test_a_name_means_the_number_of_its_machine() -> None:
    # From the kernel's own headers, a few of each: the tables themselves cannot be their own oracle.
    assert [X86_64.numbers[n] for n in ("read", "execve", "openat", "clone3", "io_uring_setup", "mseal")] == [
        *(0, 59, 257, 435, 425, 462)
    ]
    assert [AARCH64.numbers[n] for n in ("read", "execve", "openat", "clone3", "io_uring_setup", "mseal")] == [
        *(63, 221, 56, 435, 425, 462)
    ]


conditions = st.builds(
    ArgumentCondition, st.integers(0, 5), st.integers(0, ALL_BITS), st.sampled_from([0xFFFFFFFF, ALL_BITS, 6, 1 << 40])
) | st.builds(
    ArgumentCondition, st.integers(0, 5), st.sampled_from(INTERESTING), st.sampled_from([0xFFFFFFFF, 6]), st.just(True)
)


@given(
    st.lists(st.lists(conditions, max_size=3).map(tuple), min_size=1, max_size=4).map(tuple),
    st.lists(st.sampled_from(INTERESTING), min_size=6, max_size=6),
)
def test_a_compiled_rule_is_any_of_all_of_its_conditions(alternatives: bpf.Alternatives, arguments: list[int]) -> None:
    wanted = any(
        all((arguments[c.argument] & c.mask == c.value & c.mask) != c.differs for c in each) for each in alternatives
    )
    alike = tuple(tuple(replace(c, value=c.value & c.mask) for c in each) for each in alternatives)
    program = bpf.compiled({"read": alike}, X86_64, errnos={})
    assert (bpf.verdict(program, X86_64.audit, 0, arguments) == ALLOW) == wanted


def test_a_filter_fits_into_the_kernels_limit() -> None:
    for calls in (syscall_rules.launching(ME, jit=True, helpers=True, forks=True), {"read": ALWAYS}):
        assert len(syscall_rules.program(calls, X86_64)) <= 4096
