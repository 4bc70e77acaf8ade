"""Which system calls a replica may make: while it starts, and once it is sealed."""

from __future__ import annotations

import errno
import platform
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from inferline_stream.isolation import bpf
from inferline_stream.isolation.bpf import ALWAYS, Alternatives, ArgumentCondition, Calls
from inferline_stream.isolation.syscall_numbers import AARCH64, X86_64

MACHINES: Mapping[str, bpf.Architecture] = MappingProxyType(
    {"x86_64": bpf.Architecture(0xC000003E, X86_64, x32=True), "aarch64": bpf.Architecture(0xC00000B7, AARCH64)}
)

_WIDE = (1 << 64) - 1
_INET, _INET6, _UNIX, _STREAM, _DGRAM, _SEQPACKET = 2, 10, 1, 1, 2, 5
_KIND = 0xF  # of a socket type, without SOCK_NONBLOCK and SOCK_CLOEXEC
_TCP, _UDP = 6, 17
_FASTOPEN = 0x20000000
_WRITE, _EXEC = 2, 4
_NEW_THREAD = 0x3D0F00  # exactly what the C libraries pass for a thread: no new namespace, no new process
_FORK = 0x01200011
_SPAWN = 0x4111  # a child that borrows its parent's memory until it is another program
_EMPTY_PATH = 0x1000
_READ_ONLY = 0o2000000 | 0o740000 | 0o4000 | 0o400 | 0o1000000
"""Flags of open that neither write nor create: CLOEXEC, DIRECTORY, LARGEFILE, NOFOLLOW (and DIRECT; the machines
number these four differently), NONBLOCK, NOCTTY, NOATIME."""

_FCNTL = (1, 2, 3, 4, 1030)
"""GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC."""

_STARTING_FCNTL = (0, 5, 6, 7, 36, 37, 38, 1032)
"""Besides: DUPFD, locks of either kind, GETPIPE_SZ. None that names who is signalled for a file (SETOWN, SETSIG,
SETLEASE, NOTIFY): the kernel would send the signal, to any process of the user and after the seal too."""

_SIGNALLING_IOCTLS = (0x8901, 0x8902)
"""FIOSETOWN and SIOCSPGRP do what SETOWN does, on sockets."""

FIXED_FILTER_AT = 0x20_0000
"""Where a process has the filter of its seal, from before its first import. It lies below all programs, and out of the
ranges that drivers of GPUs reserve."""

_SECCOMP_FILTER, _ALL_THREADS = 1, 17
_SET_SECCOMP = 22  # the same by prctl

_SIGNALLING_FCNTL = (8, 10, 15, 1024, 1026)

_NO_DRIVERS = (
    "ptrace process_vm_readv process_vm_writev process_madvise pidfd_open pidfd_getfd pidfd_send_signal kcmp "
    "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key "
    "mount umount2 pivot_root chroot move_mount fsopen fsconfig fsmount fspick open_tree open_tree_attr mount_setattr "
    "unshare setns kexec_load kexec_file_load init_module finit_module delete_module create_module reboot "
    "swapon swapoff acct quotactl quotactl_fd nfsservctl lookup_dcookie name_to_handle_at open_by_handle_at "
    "fanotify_init fanotify_mark syslog personality iopl ioperm modify_ldt mknod mknodat uselib vhangup "
    "settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname "
    "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset "
    "execve execveat fork vfork clone3 kill tkill rt_sigqueueinfo rt_tgsigqueueinfo mq_notify "
    "connect bind listen accept accept4 sendmmsg"
)
"""What CUDA does not need to start or to compute, as far as is known without its sources, and an attacker would."""

_LOOPS = (
    "select pselect6 epoll_pwait2 eventfd2 time setitimer times setsockopt getpeername shutdown "
    "getuid geteuid getgid getegid getppid"
)
"""What event loops, clients and imports use, and a stage that has its batches handed to it does not."""

_NOT_EXECUTABLE: Alternatives = ((ArgumentCondition(2, 0, _EXEC),),)

ERRNOS: Mapping[str, int] = MappingProxyType(
    # Libraries fall back to `clone`, `statx` to `fstat` and so on only if a call seems not to exist.
    dict.fromkeys(("clone3", "openat2", "faccessat2", "statx", "io_uring_setup", "rseq", "membarrier"), errno.ENOSYS)
)


def _any_of(argument: int, values: Sequence[int], mask: int = 0xFFFFFFFF) -> Alternatives:
    return tuple((ArgumentCondition(argument, value, mask),) for value in values)


def _none_of(argument: int, values: Sequence[int]) -> Alternatives:
    return (tuple(ArgumentCondition(argument, value, differs=True) for value in values),)


def _plain(names: str) -> dict[str, Alternatives]:
    return dict.fromkeys(names.split(), ALWAYS)


def _sockets(kind: int, protocols: Sequence[int]) -> Alternatives:
    return tuple(
        (ArgumentCondition(0, family), ArgumentCondition(1, kind, _KIND), ArgumentCondition(2, protocol))
        for family in (_INET, _INET6)
        for protocol in protocols
    )


def sealed(
    process: int,
    *,
    network: bool = False,
    imports: bool = False,
    jit: bool = False,
    helpers: bool = False,
    signals: bool = False,
    writes: bool = False,
    serves: bool = False,
) -> Calls:
    """What is left after the seal.

    Args:
        process: the process's own id: the only one it may signal.
        network: whether it may make TCP sockets and connect them; otherwise it has the sockets that it was given.
        imports: whether files may be read still.
        jit: whether memory may be made executable.
        helpers: whether it may fork.
        signals: whether it may signal its helpers: only where Landlock keeps signals to the sandbox.
        writes: whether it may cut off the end of files that it has opened for writing, and wait for the disk.
        serves: whether it may accept connections at sockets that listen already.
    """
    calls = {
        **_plain(
            "read write readv writev close lseek fstat pread64 "
            "poll ppoll epoll_create1 epoll_ctl epoll_wait epoll_pwait pipe2 dup "
            "munmap mremap madvise brk "
            "exit exit_group futex set_robust_list rseq gettid getpid sched_yield sched_getaffinity getcpu "
            "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall "
            "clock_gettime clock_getres gettimeofday nanosleep clock_nanosleep getrusage "
            "getsockopt getsockname recvfrom recvmsg uname getrandom sysinfo"
        ),
        "newfstatat": ((ArgumentCondition(3, _EMPTY_PATH, _EMPTY_PATH),),),
        "fcntl": _any_of(1, _FCNTL),
        "ioctl": _any_of(1, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)),  # TCGETS FIONREAD FIONBIO FIONCLEX FIOCLEX
        "mmap": ALWAYS if jit else _NOT_EXECUTABLE,
        "mprotect": ALWAYS if jit else _NOT_EXECUTABLE,
        "clone": ((ArgumentCondition(0, _NEW_THREAD, _WIDE),),),
        "tgkill": ((ArgumentCondition(0, process),),),
        "prctl": _any_of(0, (15, 16)),  # a thread's name
        "prlimit64": ((ArgumentCondition(0, 0), ArgumentCondition(2, 0, _WIDE)),),
        "socketpair": _pairs(),
        "sendto": ((ArgumentCondition(3, 0, _FASTOPEN), ArgumentCondition(4, 0, _WIDE)),),
        "sendmsg": ((ArgumentCondition(2, 0, _FASTOPEN),),),
    }
    if network:
        calls |= {
            **_plain(f"connect {_LOOPS}"),
            "socket": _sockets(_STREAM, (0, _TCP)),
            "sendto": ((ArgumentCondition(3, 0, _FASTOPEN),),),
        }
    if imports:
        calls |= {
            **_plain("stat lstat access faccessat readlink readlinkat getdents64 getcwd newfstatat"),
            "openat": ((ArgumentCondition(2, 0, ~_READ_ONLY & 0xFFFFFFFF),),),
            "mmap": ALWAYS if jit else (*_NOT_EXECUTABLE, (ArgumentCondition(2, 0, _WRITE),)),
        }
    if helpers:
        calls |= {**_forking(), **_plain("getppid")}
        calls |= {"kill": ALWAYS} if signals else {}
    if writes:
        calls |= _plain("ftruncate fsync")
    if serves:
        calls |= _plain("accept4")
    return MappingProxyType(calls)


def launching(
    process: int,
    *,
    network: bool = False,
    jit: bool = False,
    helpers: bool = False,
    signals: bool = False,
    serves: bool = False,
    forks: bool = False,
    programs: bool = False,
    fixed: bool = False,
) -> Calls:
    """What a process may do from before its first import to the seal. Files and TCP ports are Landlock's to judge.

    Args:
        process: the process's own id.
        network: whether it may make sockets and look names up.
        jit: whether memory may be both written and executed.
        helpers: whether it may fork.
        signals: whether it may signal its helpers.
        serves: whether it may listen; at which ports is Landlock's to judge.
        forks: whether it is a parent that forks replicas, hands them their files and tells how they ended.
        programs: whether it may run others, which Landlock judges.
        fixed: whether the only filter that it may put itself under is the one at `FIXED_FILTER_AT`: another one that
            allows everything would look the same from outside.
    """
    calls = {
        **sealed(process, network=network, imports=True, jit=jit, helpers=helpers, signals=signals, serves=serves),
        **_plain(_LOOPS),
        **_plain(
            "open openat statx faccessat2 getdents pwrite64 preadv pwritev fadvise64 readahead sendfile ftruncate "
            "fallocate fdatasync flock unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir chmod fchmod "
            "fchmodat utimensat umask statfs fstatfs fsync chdir fchdir close_range dup2 dup3 pipe "
            "msync mincore mlock munlock mbind get_mempolicy set_mempolicy membarrier "
            "set_tid_address get_robust_list arch_prctl sched_setaffinity sched_getparam sched_getscheduler "
            "sched_get_priority_max sched_get_priority_min getpriority "
            "rt_sigtimedwait rt_sigpending getitimer timer_create timer_settime timer_gettime timer_delete "
            "timerfd_create timerfd_settime getrlimit getresuid getresgid getgroups getpgrp getpgid getsid capget "
            "seccomp"
        ),
        "prctl": _none_of(0, (_SET_SECCOMP,)),
        "prlimit64": ((ArgumentCondition(0, 0),),),
        "landlock_create_ruleset": ((ArgumentCondition(2, 1),),),  # asks for the version
        "ioctl": _none_of(1, _SIGNALLING_IOCTLS),
        "fcntl": _any_of(1, _FCNTL + _STARTING_FCNTL),
    }
    if fixed:
        at = ArgumentCondition(2, FIXED_FILTER_AT, _WIDE)
        calls["seccomp"] = ((ArgumentCondition(0, _SECCOMP_FILTER), ArgumentCondition(1, _ALL_THREADS), at),)
    if network:  # names are looked up over UDP
        calls["socket"] = (*_sockets(_STREAM, (0, _TCP)), *_sockets(_DGRAM, (0, _UDP)))
        calls["sendmmsg"] = ((ArgumentCondition(3, 0, _FASTOPEN),),)
    if serves:
        calls |= _plain("bind listen")
    if forks:
        calls |= {**_forking(), **_plain("setsid landlock_create_ruleset landlock_add_rule landlock_restrict_self")}
    if programs:
        calls |= _running_programs()
    return MappingProxyType(calls)


def beside_driver(
    process: int,
    on: bpf.Architecture,
    *,
    network: bool = False,
    helpers: bool = False,
    signals: bool = False,
    programs: bool = False,
    sealed: bool = False,
    fixed: bool = False,
) -> Calls:
    """What a process on a GPU may do: all but what is known to be of no use to its driver.

    A Unix socket may be made, and connected with nothing: a driver looks for the daemon of MPS by one.

    Args:
        process: the process's own id.
        on: the machine.
        network: whether it may make TCP sockets and connect them; then it makes no others.
        helpers: whether it may fork.
        signals: whether it may signal its helpers.
        programs: see `launching`.
        sealed: whether it is sealed, and looks no names up any more.
        fixed: see `launching`.
    """
    starting = launching(process, network=network, helpers=helpers, signals=signals, fixed=fixed)
    calls = {
        **dict.fromkeys(on.numbers.keys() - set(_NO_DRIVERS.split()), ALWAYS),
        **{name: starting[name] for name in ("clone", "tgkill", "prctl", "prlimit64", "seccomp", "socketpair")},
        "kill": starting.get("kill", ((ArgumentCondition(0, process),),)),
        "ioctl": _none_of(1, _SIGNALLING_IOCTLS),
        "fcntl": _none_of(1, _SIGNALLING_FCNTL),
        "sendto": starting["sendto"],
        "sendmsg": starting["sendmsg"],
        "socket": starting["socket"] if network else _pairs(),
    }
    if network:
        calls |= {name: starting[name] for name in ("connect", "sendmmsg")}
    if network and sealed:
        calls["socket"] = _sockets(_STREAM, (0, _TCP))
        del calls["sendmmsg"]
    if programs:
        calls |= _running_programs()
        del calls["setsid"]  # by its session, what it leaves behind is found
    if sealed:
        del calls["getsid"]  # by which a process finds out that it is sealed
    return MappingProxyType(calls)


def _pairs() -> Alternatives:
    # A pair of datagram sockets could be turned to another process's socket by its path.
    return tuple((ArgumentCondition(0, _UNIX), ArgumentCondition(1, kind, _KIND)) for kind in (_STREAM, _SEQPACKET))


def _forking() -> Calls:
    """Forking into the same seal; never another program."""
    return {
        **_plain("wait4 waitid dup2 dup3 pipe set_tid_address"),
        "clone": tuple((ArgumentCondition(0, flags, _WIDE),) for flags in (_NEW_THREAD, _FORK)),
    }


def _running_programs() -> Calls:
    """Starting another program within what confines this one, and waiting for it."""
    clones = tuple((ArgumentCondition(0, flags, _WIDE),) for flags in (_NEW_THREAD, _FORK, _SPAWN))
    return {**_forking(), **_plain("execve vfork getppid setrlimit"), "clone": clones}


def machine() -> bpf.Architecture | None:
    """The machine we run on; None where no replica can be sealed."""
    return MACHINES.get(platform.machine()) if platform.system() == "Linux" else None


def program(calls: Calls, on: bpf.Architecture) -> tuple[bpf.Instruction, ...]:
    """The filter for a set of calls."""
    # As if no daemon listened: a driver does without, and one that may not ask for it might not.
    return bpf.compiled(calls, on, errnos={**ERRNOS, "connect": errno.ENOENT})


def reachable(calls: Calls, on: bpf.Architecture) -> int:
    """How many system calls some argument is allowed for."""
    return sum(name in on.numbers for name in calls)
