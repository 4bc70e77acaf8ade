"""What the lock files pin, read without a network."""

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {
    "requirements.lock": ("moderation", "build"),
    "requirements-dev.lock": ("moderation", "ocr", "dev"),
    "docker/requirements.lock": ("kubernetes", "moderation", "build"),
    "docker/requirements-gpu.lock": ("kubernetes", "moderation", "build"),
}
"""Each lock, with the extras and groups of pyproject.toml that it is for."""
ELSEWHERE = {"onnxruntime-gpu"}
"""Distributions that only a lock of an image has, so that no metadata of theirs is here. Look at it by hand."""


class Pin(NamedTuple):
    version: str
    extras: frozenset[str]
    hashes: int


def locked(name: str) -> dict[str, Pin]:
    """Return what a lock pins for this Python, by the distribution's name: with its extras, where it has any."""
    pins = {}
    for entry in re.split(r"\n(?=[a-z])", (ROOT / name).read_text()):
        match = re.match(r"([a-z0-9.-]+)(?:\[([^\]]+)\])?==(\S+)(?: ; (.+?))? \\", entry)
        if match and (match[4] is None or Marker(match[4]).evaluate()):
            extras = frozenset(re.split(", *", match[2])) if match[2] else frozenset()
            pins[canonicalize_name(match[1])] = Pin(match[3], extras, entry.count("--hash=sha256:"))
    return pins


def declared(*extras: str) -> list[Requirement]:
    groups = DECLARED["project"]["optional-dependencies"] | DECLARED["dependency-groups"]
    lines = [*DECLARED["project"]["dependencies"]]
    for each in extras:
        lines += [line for line in groups[each] if isinstance(line, str)]
        lines += [line for other in groups[each] if isinstance(other, dict) for line in groups[other["include-group"]]]
    return [Requirement(line) for line in lines]


def missing_extras(pins: dict[str, Pin], requirement: Requirement, extras: frozenset[str], of: str) -> str:
    """Return what is wrong with the pin of a requirement of one that has these extras; empty if nothing is."""
    wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": each}) for each in extras | {""})
    if not wanted or not requirement.extras:
        return ""
    pin = pins.get(canonicalize_name(requirement.name))
    lacks = requirement.extras - (pin.extras if pin else frozenset())
    return f"{of} requires {requirement}, which is pinned without {sorted(lacks)}" if lacks else ""


@pytest.mark.parametrize("lock", LOCKS)
def test_a_requirement_with_extras_is_pinned_with_these_extras(lock: str) -> None:
    """Older pips take a pin without them for another requirement, and look for its newest release: pip 23 does."""
    pins = locked(lock)
    wrong = [missing_extras(pins, each, frozenset(), "pyproject.toml") for each in declared(*LOCKS[lock])]
    for name in pins.keys() - ELSEWHERE:
        for line in metadata.distribution(name).requires or ():
            wrong.append(missing_extras(pins, Requirement(line), pins[name].extras, name))
    assert [each for each in wrong if each] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_what_is_pinned_with_extras_is_pinned_without_them_too(lock: str) -> None:
    """Older pips take a pin with extras for another requirement than one without: confluent-kafka's, of httpx2."""
    pinned = re.findall(r"^([a-z0-9.-]+)(\[.+?\])?(==.+) \\$", (ROOT / lock).read_text(), re.MULTILINE)
    plain = {(name, version) for name, extras, version in pinned if not extras}
    assert {(name, version) for name, extras, version in pinned if extras} <= plain


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_every_dependency_with_its_hashes_and_names_no_index(lock: str) -> None:
    pins = locked(lock)
    for requirement in declared(*LOCKS[lock]):
        name = canonicalize_name(requirement.name)
        if name == "onnxruntime" and "onnxruntime-gpu" in pins:  # the same module
            continue
        assert name in pins, f"{name} is in pyproject.toml and not in {lock}"
        assert requirement.specifier.contains(pins[name].version), f"{requirement} is not {pins[name].version}"
    assert all(pin.hashes > 0 for pin in pins.values())
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE), "no option: neither another index nor a way to install"


@pytest.mark.parametrize("lock", ["requirements.lock", "docker/requirements.lock", "docker/requirements-gpu.lock"])
def test_what_is_installed_is_what_is_tested(lock: str) -> None:
    pins, tested = locked(lock), locked("requirements-dev.lock")
    assert pins.keys() >= {"aiokafka", "numpy", "setuptools"}
    assert len({"onnxruntime", "onnxruntime-gpu"} & pins.keys()) == 1  # they are one module, and overwrite each other
    versions = {name: pin.version for name, pin in pins.items() if name not in ELSEWHERE}
    assert {name: tested[name].version for name in versions} == versions


def test_a_build_without_isolation_finds_what_it_requires() -> None:
    """Else pip would fetch whatever is newest for it: README installs with --no-build-isolation."""
    for line in DECLARED["build-system"]["requires"]:
        requirement = Requirement(line)
        pin = locked("requirements.lock")[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin.version)
