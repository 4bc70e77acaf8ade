"""Seccomp filters as values: which system calls with which arguments, compiled to the kernel's BPF, and interpreted.

The kernel hands a filter the machine, the number and six 64-bit arguments of a call, and obeys the verdict.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ALLOW = 0x7FFF0000
KILL = 0x80000000
_ERRNO = 0x00050000

_X32_BIT = 0x40000000
_LOW = 0xFFFFFFFF

_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data; both machines are little-endian
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # struct sock_filter's codes


class Instruction(NamedTuple):
    """One instruction: its code, how many to skip if true and if false, and its operand."""

    code: int
    true: int
    false: int
    operand: int


@dataclass(frozen=True, slots=True)
class ArgumentCondition:
    """What must hold of one argument: ``argument & mask == value``, or that it differs.

    Args:
        argument: position, from 0.
        value: what the masked argument must be.
        mask: bits that count. The upper half counts only if the mask has bits there: of an argument that the kernel
            takes as an ``int``, it drops the upper half too.
        differs: whether it must not be the value; of a mask without upper bits.
    """

    argument: int
    value: int
    mask: int = _LOW
    differs: bool = False


Alternatives = tuple[tuple[ArgumentCondition, ...], ...]
"""Any of these, each of which is all of its conditions."""

ALWAYS: Alternatives = ((),)

Calls = Mapping[str, Alternatives]
"""System calls by name, and when each is allowed."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A machine's own name for itself, and its system calls."""

    audit: int
    numbers: Mapping[str, int]
    x32: bool = False
    """Whether it has a second set of system calls under other numbers, which must not be a way around."""


def refused(number: int) -> int:
    """The verdict that makes a call fail with an errno."""
    return _ERRNO | number


def compiled(calls: Calls, machine: Architecture, *, errnos: Mapping[str, int]) -> tuple[Instruction, ...]:
    """The filter that allows these calls.

    Another machine's calls end the process. Calls that are newer than the table do not exist, so that libraries fall
    back to older ones.

    Args:
        calls: what is allowed; names that the machine lacks are left out.
        machine: whose numbers count.
        errnos: for calls refused otherwise than with EPERM.
    """
    denied = refused(errno.EPERM)
    program = [
        Instruction(_LOAD, 0, 0, _MACHINE_AT),
        Instruction(_EQUAL, 1, 0, machine.audit),
        Instruction(_RETURN, 0, 0, KILL),
        Instruction(_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine.x32:
        program += [Instruction(_AT_LEAST, 0, 1, _X32_BIT), Instruction(_RETURN, 0, 0, KILL)]
    # The kernel knows beforehand which numbers are allowed whatever their arguments, and skips the filter for them.
    for number, alternatives in sorted(
        (machine.numbers[name], when) for name, when in calls.items() if name in machine.numbers
    ):
        block = _block(alternatives, denied)
        program += [Instruction(_EQUAL, 0, len(block), number), *block]
    for name, code in errnos.items():
        if name in machine.numbers and name not in calls:
            program += [Instruction(_EQUAL, 0, 1, machine.numbers[name]), Instruction(_RETURN, 0, 0, refused(code))]
    newest = max(machine.numbers.values())
    program += [
        Instruction(_AT_LEAST, 0, 1, newest + 1),
        Instruction(_RETURN, 0, 0, refused(errno.ENOSYS)),
        Instruction(_RETURN, 0, 0, denied),
    ]
    return tuple(program)


def _block(alternatives: Alternatives, denied: int) -> list[Instruction]:
    block: list[Instruction] = []
    for conditions in alternatives:
        tests = [(test, condition.differs) for condition in conditions for test in _tests(condition)]
        for at, (test, differs) in enumerate(tests):
            # A test that fails goes on with the next alternative, behind this one's verdict.
            beyond = {"true" if differs else "false": len(tests) - at}
            block.append(test if test.code != _EQUAL else test._replace(**beyond))
        block.append(Instruction(_RETURN, 0, 0, ALLOW))
    if all(alternatives):
        block.append(Instruction(_RETURN, 0, 0, denied))
    return block


def _tests(condition: ArgumentCondition) -> Iterable[Instruction]:
    for half in (0, 1):
        mask, value = condition.mask >> 32 * half & _LOW, condition.value >> 32 * half & _LOW
        if half and not mask:
            continue
        yield Instruction(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * condition.argument + 4 * half)
        if mask != _LOW:
            yield Instruction(_AND, 0, 0, mask)
        yield Instruction(_EQUAL, 0, 0, value)


def encoded(program: Sequence[Instruction]) -> bytes:
    """The filter as the kernel takes it."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def verdict(
    program: Sequence[Instruction], audit: int, number: int, arguments: Sequence[int] | None = ()
) -> int | None:
    """What the kernel does with one call, by running the filter as it would.

    Args:
        program: the filter.
        audit: machine that the call comes from.
        number: the call's number.
        arguments: up to six, unsigned; None for whichever.

    Returns:
        The verdict; None if it depends on the arguments, and these are not given.
    """
    padded = [*(arguments or ()), 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number & _LOW, audit, 0, *(value & (1 << 64) - 1 for value in padded))
    accumulator = at = 0
    while True:
        code, true, false, operand = program[at]
        at += 1
        if code == _LOAD:
            if arguments is None and operand >= _ARGUMENTS_AT:
                return None
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == _AND:
            accumulator &= operand
        elif code == _RETURN:
            return operand
        elif code in (_EQUAL, _AT_LEAST):
            holds = accumulator == operand if code == _EQUAL else accumulator >= operand
            at += true if holds else false
        else:
            raise ValueError(f"instruction {at - 1} has code {code:#x}, which no filter of ours has")
