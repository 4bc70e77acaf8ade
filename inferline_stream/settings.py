"""Every knob: unit, default, reason. The only reader of the environment."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

from inferline_stream.errors import UsageError
from inferline_stream.pipeline.units import duration_s, size_bytes

CACHE = "INFERLINE_CACHE"

KAFKA_VERSION = "4.4.0"
"""The Apache Kafka that tests run on, unless the environment names another."""


_FEWEST_SAMPLES = 5


def _knob(default: float, reason: str, *, above_zero: bool = False) -> float:
    """A field of `Settings` with the reason for its default, and whether a pipeline cannot run on 0."""
    return field(default=default, metadata={"reason": reason, "above_zero": above_zero})


@dataclass(frozen=True, slots=True)
class Settings:
    """Knobs of a run. Durations are seconds, sizes bytes."""

    fetch_wait_s: float = _knob(
        0.020,
        "Longest a fetch of a dispatcher waits for records on brokers that do not also hold the assignments topic.",
    )
    heartbeat_s: float = _knob(0.5, "How often a dispatcher reports and renews its lease.", above_zero=True)
    lease_s: float = _knob(
        2.0,
        "A dispatcher that could not report for this long sends and commits nothing: its slot may be another's.",
        above_zero=True,
    )
    dead_after_s: float = _knob(
        3.0,
        "Silence after which a dispatcher counts as dead; above `lease_s`, so that two never serve a slot. Up to 16 "
        "times that where one fell silent soon after another: on a starved host a successor would be no faster.",
        above_zero=True,
    )
    arrivals_sample_s: float = _knob(
        0.020,
        "How often end offsets are read: the resolution of the live traffic envelope.",
        above_zero=True,
    )
    tuner_step_s: float = _knob(0.1, "How often the Tuner decides.", above_zero=True)
    planner_every_s: float = _knob(300.0, "How often the plan is looked at again.", above_zero=True)
    planner_beyond_s: float = _knob(
        30.0,
        "How long traffic must have been beyond the plan for it to be looked at at once: longer than a burst.",
    )
    planner_recent_s: float = _knob(
        3600.0,
        "How much of the recorded traffic a new plan is made for; its busiest stretch where that is many events.",
    )
    planner_saves_share: float = _knob(
        0.1,
        "Share of its cost by which a new plan must be cheaper: below it, a change costs more than it brings.",
    )
    planner_effort_s: float = _knob(60.0, "Longest time that one search for a plan may take.")
    connect_timeout_s: float = _knob(
        10.0,
        "Longest wait for Kafka's first answer before the command ends with exit code 5.",
        above_zero=True,
    )
    start_timeout_s: float = _knob(60.0, "Longest a replica may take to import and load its stage.", above_zero=True)
    gpu_start_timeout_s: float = _knob(
        600.0,
        "The same on a GPU: tens of GB of weights are read, and kernels are compiled.",
        above_zero=True,
    )
    drain_timeout_s: float = _knob(30.0, "Longest a stopping run waits for the last events.")
    orphan_s: float = _knob(
        3600.0,
        "How long dispatchers and replicas go on without a controller: long enough for people to be woken.",
    )
    batch_deadline_s: float = _knob(
        60.0,
        "Longest deadline of a batch, and that of a batch without a profile; then it runs elsewhere, and the "
        "replica is killed at ten times the deadline.",
    )
    join_age_s: float = _knob(
        600.0,
        "How long a part of a join waits for the rest at least; then the event becomes a dead letter, once every stage "
        "before the join has finished what the rest could come from. Event ids that are finished are remembered for "
        "as long, as far as `join_bytes` holds them: a part that comes again is dropped, and one that comes after its "
        "event was given up becomes a dead letter, too.",
    )
    join_bytes: float = _knob(
        256.0 * 1024 * 1024,
        "Parts of joins that a dispatcher holds, and ids of finished events that it remembers. Beyond it the oldest "
        "ids are forgotten, down to a quarter of it, and then of the newest parts only their places in Kafka are kept "
        "(600 bytes an event): they are read again when the event is complete.",
    )
    decompressed_bytes: float = _knob(
        16.0 * 1024 * 1024,
        "Largest that a batch of records may be once it is decompressed; a larger one becomes a dead letter, unread.",
        above_zero=True,
    )
    topic_check_s: float = _knob(
        10.0,
        "How often those who read a topic look whether it is still the same one, and whether it has more partitions.",
        above_zero=True,
    )
    offsets_check_s: float = _knob(
        5.0,
        "How often a dispatcher looks whether somebody else has overwritten its committed offsets.",
        above_zero=True,
    )
    offsets_recommit_s: float = _knob(
        24 * 3600.0,
        "How often a dispatcher commits offsets that have not changed: Kafka forgets those of a group without "
        "members once nobody has committed them for `offsets.retention.minutes`, 7 days unless a cluster says "
        "otherwise.",
        above_zero=True,
    )

    @property
    def shortest_window_s(self) -> float:
        """The shortest window of a traffic envelope that holds some samples: one must not look like a burst."""
        return _FEWEST_SAMPLES * self.arrivals_sample_s

    def start_limit_s(self, *, gpu: bool) -> float:
        """Return how long a replica may take to start."""
        return max(self.start_timeout_s, self.gpu_start_timeout_s) if gpu else self.start_timeout_s


SETTINGS_VARIABLES = tuple(f"INFERLINE_{name.upper()}" for name in Settings.__dataclass_fields__)
"""Every variable that `from_environment` reads."""


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings with `INFERLINE_<NAME>` applied, as ``INFERLINE_TUNER_STEP_S=50ms``; a bare number is seconds or bytes.

    Raises:
        UsageError: a variable that is neither a number, 0 or more, nor a duration or size, whichever it has to be;
            one that has to be above 0 and is not; a dispatcher that counts as dead before its lease is over.
    """
    found: dict[str, float] = {}
    above_zero = {knob.name for knob in fields(Settings) if knob.metadata["above_zero"]}
    for name, variable in zip(Settings.__dataclass_fields__, SETTINGS_VARIABLES, strict=True):
        if variable in environment:
            try:
                found[name] = _number(environment[variable], name)
            except ValueError:
                what = next((what for end, (_, what) in _UNITS.items() if name.endswith(end)), "a number")
                raise UsageError(f"{variable}={environment[variable]!r} is not {what}") from None
            if found[name] == 0 and name in above_zero:
                usual = Settings.__dataclass_fields__[name].default
                raise UsageError(f"{variable}={environment[variable]!r} must be above 0; it is {usual:.12g} by default")
    chosen = Settings(**found)
    if not found.keys().isdisjoint(("lease_s", "dead_after_s")) and chosen.dead_after_s <= chosen.lease_s:
        raise UsageError(
            f"INFERLINE_DEAD_AFTER_S={chosen.dead_after_s:g} must be above INFERLINE_LEASE_S={chosen.lease_s:g}, or "
            "two dispatchers may serve one slot"
        )
    return chosen


_UNITS = {
    "_s": (duration_s, "a number of seconds, or a duration such as 250ms"),
    "_bytes": (size_bytes, "a number of bytes, or a size such as 64MB"),
}
"""How settings whose name ends so are written with a unit."""


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        with_unit = next((with_unit for end, (with_unit, _) in _UNITS.items() if name.endswith(end)), float)
        number = with_unit(text)
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number


def reasons() -> dict[str, str]:
    """Why each setting is there and what it is."""
    return {knob.name: knob.metadata["reason"] for knob in fields(Settings)}


def check_variables(flags: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Refuse variables that nothing reads: a setting that is misspelt would silently be without effect.

    Args:
        flags: variables that stand for flags of the command line.
        environment: of the process, unless given.

    Raises:
        UsageError: a variable that begins with ``INFERLINE_`` and means nothing, with the nearest that does.
    """
    known = {*flags, *SETTINGS_VARIABLES, *KAFKA_VARIABLES, *DISPATCHER_KAFKA_VARIABLES, CACHE}
    for variable in sorted(environment):
        if variable.startswith("INFERLINE_") and variable not in known:
            near = difflib.get_close_matches(variable, known, 1)
            raise UsageError(f"{variable} means nothing here" + (f"; did you mean {near[0]}?" if near else ""))


def given(variables: Iterable[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those of the variables that are set, with their values."""
    return {variable: environment[variable] for variable in variables if variable in environment}


def visible_gpus(environment: Mapping[str, str] = os.environ) -> str | None:
    """Which GPUs this process may use, as CUDA's own variable names them; None for all."""
    return environment.get("CUDA_VISIBLE_DEVICES")


def gpus_by_bus(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether CUDA counts GPUs by their place on the bus, as the driver does, and not the fastest first."""
    return environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"


def mps_folder(environment: Mapping[str, str] = os.environ) -> str:
    """Folder of the pipes of MPS's daemon, by which processes share a GPU."""
    return environment.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"  # noqa: S108  NVIDIA's own default


_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s/:\[\]]+))(?::([0-9]{1,5}))?")

_KAFKA_PORT = 9092


def _is_host(name: str) -> bool:
    try:
        name.encode("idna")  # as a client does to resolve it
    except UnicodeError:
        return False
    return True


def kafka_addresses(bootstrap_servers: str) -> list[tuple[str, int]]:
    """Return host and port of each broker in ``host:port,host:port``; without a port it is Kafka's usual one.

    Raises:
        UsageError: one of them is not an address, or there is none.
    """
    entries = [entry.strip() for entry in bootstrap_servers.split(",") if entry.strip()]
    found = [_ADDRESS.fullmatch(entry) for entry in entries]
    for entry, address in zip(entries or [bootstrap_servers], found or [None], strict=True):
        if address is None or not _is_host(address[1] or address[2]) or not 0 < int(address[3] or _KAFKA_PORT) < 2**16:
            raise UsageError(f"{entry!r} is not an address of Kafka; write host:port, e.g. localhost:9092")
    every = [address for address in found if address is not None]
    return [(address[1] or address[2], int(address[3] or _KAFKA_PORT)) for address in every]


@dataclass(frozen=True, slots=True, repr=False)
class KafkaSecurity:
    """How clients prove to Kafka who they are, and know that it is Kafka. Shown without its secrets.

    Each field is a property by librdkafka's name, with underscores for dots: ``sasl.username`` is `sasl_username`. In
    the environment it is ``INFERLINE_KAFKA_SASL_USERNAME``; in the file that ``INFERLINE_KAFKA_CONFIG`` names it is a
    line ``sasl.username=...``. The environment wins.
    """

    security_protocol: str = ""
    """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; by default what the other properties need, with TLS."""
    sasl_mechanism: str = "PLAIN"
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER."""
    sasl_username: str = ""
    sasl_password: str = ""
    sasl_oauthbearer_token_endpoint_url: str = ""
    """Where OAUTHBEARER fetches tokens, with the client credentials that follow (OAuth 2.0, RFC 6749, 4.4)."""
    sasl_oauthbearer_client_id: str = ""
    sasl_oauthbearer_client_secret: str = ""
    sasl_oauthbearer_scope: str = ""
    sasl_oauthbearer_token_program: str = ""
    """Prints a token as JSON, ``{"access_token": "...", "expires_in": 900}``; in place of an endpoint."""
    ssl_ca_location: str = ""
    """PEM file of the authorities that may have signed the broker's certificate; the system's by default."""
    ssl_certificate_location: str = ""
    """PEM file of the client's own certificate, where the broker asks for one."""
    ssl_key_location: str = ""
    ssl_key_password: str = ""

    def __post_init__(self) -> None:
        if not self.security_protocol:
            tokens = self.sasl_oauthbearer_token_endpoint_url or self.sasl_oauthbearer_token_program
            sasl = self.sasl_username or tokens
            tls = self.ssl_ca_location or self.ssl_certificate_location
            object.__setattr__(self, "security_protocol", "SASL_SSL" if sasl else "SSL" if tls else "PLAINTEXT")
        self._check("security_protocol", ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"))
        self._check("sasl_mechanism", ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"))
        if self.sasl and self.sasl_mechanism == "OAUTHBEARER" and not self.sasl_oauthbearer_token_program:
            self._need("sasl_oauthbearer_token_endpoint_url", "sasl_oauthbearer_client_id")
            if not self.sasl_oauthbearer_token_endpoint_url.startswith(("http://", "https://")):
                raise UsageError("Kafka's sasl.oauthbearer.token.endpoint.url must begin with https:// or http://")
        elif self.sasl and self.sasl_mechanism != "OAUTHBEARER":
            self._need("sasl_username", "sasl_password")
        for name in ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location"):
            if (file := getattr(self, name)) and not Path(file).is_file():
                raise UsageError(f"Kafka's {name.replace('_', '.')}: there is no file {file}")

    @property
    def sasl(self) -> bool:
        """Whether clients say who they are."""
        return self.security_protocol.startswith("SASL")

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")

    def __repr__(self) -> str:
        if not self.sasl:
            return f"KafkaSecurity({self.security_protocol})"
        return f"KafkaSecurity({self.security_protocol}, {self.sasl_mechanism}, {self.user!r})"

    @property
    def user(self) -> str:
        """Who a client says it is."""
        return self.sasl_username or self.sasl_oauthbearer_client_id or self.sasl_oauthbearer_token_program

    def _check(self, name: str, known: Iterable[str]) -> None:
        if (value := getattr(self, name)) not in known:
            raise UsageError(f"Kafka's {name.replace('_', '.')}={value!r} is none of {', '.join(known)}")

    def _need(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name):
                raise UsageError(
                    f"Kafka's {name.replace('_', '.')} is needed for {self.sasl_mechanism}: set "
                    f"{_variable(name)}, or a line of the file that {KAFKA_CONFIG} names"
                )


_KAFKA, _DISPATCHER_KAFKA = "INFERLINE_KAFKA_", "INFERLINE_DISPATCHER_KAFKA_"
KAFKA_CONFIG = f"{_KAFKA}CONFIG"


def kafka_security(environment: Mapping[str, str] = os.environ) -> KafkaSecurity:
    """What the environment, and the file it names, say about TLS and SASL.

    Raises:
        UsageError: a property that is unknown, missing or impossible, or a file that cannot be read.
    """
    given = _properties(environment[KAFKA_CONFIG]) if environment.get(KAFKA_CONFIG) else {}
    for name in KafkaSecurity.__dataclass_fields__:
        if value := environment.get(_variable(name)):
            given[name] = value
    return KafkaSecurity(**given)


def _variable(name: str) -> str:
    return f"{_KAFKA}{name.upper()}"


KAFKA_VARIABLES = (KAFKA_CONFIG, *map(_variable, KafkaSecurity.__dataclass_fields__))
"""Every variable that `kafka_security` reads."""

DISPATCHER_KAFKA_VARIABLES = tuple(_DISPATCHER_KAFKA + name.removeprefix(_KAFKA) for name in KAFKA_VARIABLES)
"""Every variable that `dispatcher_environment` puts in the place of those."""


def dispatcher_keys(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return where a dispatcher's `KAFKA_VARIABLES` come from: variables of the controller's, by what they become.

    Empty where dispatchers are the controller's own Kafka user.
    """
    found = given(DISPATCHER_KAFKA_VARIABLES, environment)
    return {_KAFKA + name.removeprefix(_DISPATCHER_KAFKA): name for name, value in found.items() if value}


def dispatcher_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of the supervisor, whose dispatchers may be another Kafka user than the controller.

    One variable of `DISPATCHER_KAFKA_VARIABLES` is enough to replace all of `KAFKA_VARIABLES`: of a mixture nobody
    could say which user it makes, and dispatchers should not see the controller's secrets.

    Raises:
        UsageError: a property that is unknown, missing or impossible, or a file that cannot be read.
    """
    source = dict(environment)
    own = {name: source[key] for name, key in dispatcher_keys(source).items()}
    for name in (*(KAFKA_VARIABLES if own else ()), *DISPATCHER_KAFKA_VARIABLES):
        source.pop(name, None)
    if not own:
        return source
    source |= own
    try:
        kafka_security(source)
    except UsageError as error:
        raise UsageError(f"of the dispatchers: {str(error).replace(_KAFKA, _DISPATCHER_KAFKA)}") from None
    return source


def _properties(file: str) -> dict[str, str]:
    """A file of ``name=value`` lines; lines that begin with # are comments."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{KAFKA_CONFIG}={file} cannot be read: {getattr(error, 'strerror', error)}") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        field = name.strip().replace(".", "_")
        if not equals or field not in KafkaSecurity.__dataclass_fields__:
            known = ", ".join(field.replace("_", ".") for field in KafkaSecurity.__dataclass_fields__)
            raise UsageError(f"{file}, line {number}: no property of this program; it knows {known}")
        found[field] = value.strip()
    return found


def runtime_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return this user's folder for sockets: below `XDG_RUNTIME_DIR`, else below the folder for temporary files.

    The path is short, since the path of a socket has at most 107 bytes.
    """
    if environment.get("XDG_RUNTIME_DIR"):
        return Path(environment["XDG_RUNTIME_DIR"]) / "inferline-stream"
    return Path(environment.get("TMPDIR") or "/tmp") / f"inferline-stream-{os.getuid()}"  # noqa: S108  made with mode 0700


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the machine offers to tests that need Apache Kafka."""

    kafka_bootstrap_servers: str | None
    """`KAFKA_BOOTSTRAP_SERVERS`: a Kafka that is already there, used before any other."""

    container_engine: str | None
    """`DOCKER_HOST`: where a Docker or podman engine listens, if not at its usual sockets."""

    cache: Path
    """Where downloads are kept: `INFERLINE_CACHE`, else `inferline-stream` in the user's cache folder."""

    ci: bool
    """`CI`: nothing may be skipped."""

    kafka_version: str = KAFKA_VERSION
    """`KAFKA_VERSION`: the release that is run in a container or fetched for local Java."""


def surroundings(environment: Mapping[str, str] = os.environ) -> Surroundings:
    """What the environment says about Kafka for tests."""
    caches = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Surroundings(
        kafka_bootstrap_servers=environment.get("KAFKA_BOOTSTRAP_SERVERS") or None,
        container_engine=environment.get("DOCKER_HOST") or None,
        cache=Path(environment.get(CACHE) or caches / "inferline-stream"),
        ci=environment.get("CI", "").lower() not in ("", "0", "false"),
        kafka_version=environment.get("KAFKA_VERSION") or KAFKA_VERSION,
    )


@cache
def release() -> str:
    """Return the release of this program that is installed."""
    from importlib.metadata import (  # loads email and zipfile, which a replica does not need
        PackageNotFoundError,
        version,
    )

    try:
        return version("inferline-stream")
    except PackageNotFoundError:
        return "unknown"


HOST_NAME, HOST_ADDRESS, HOST_SPEC = "INFERLINE_HOST_NAME", "INFERLINE_HOST_ADDRESS", "INFERLINE_HOST_SPEC"
"""Of the first process of a pod: its own name and address, and what it is given, as JSON."""

HOST_NODE = "INFERLINE_HOST_NODE"
"""Node of a pod, for people; empty elsewhere."""


def host_node() -> str:
    """Return the value of `HOST_NODE`; empty where it is not set."""
    return os.environ.get(HOST_NODE, "")


def host_given() -> tuple[str, str, str]:
    """Return the values of `HOST_NAME`, `HOST_ADDRESS` and `HOST_SPEC`; empty where they are not set."""
    return os.environ.get(HOST_NAME, ""), os.environ.get(HOST_ADDRESS, ""), os.environ.get(HOST_SPEC, "")
