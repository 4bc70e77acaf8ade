"""How clients connect to Kafka: its address, TLS and SASL, and what to say when it turns them away."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import aiokafka.client
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason, create_conn
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from inferline_stream.errors import Unreachable, UsageError
from inferline_stream.kafka.fetched_batches import are_bounded, bound_batches
from inferline_stream.settings import KafkaSecurity, from_environment, kafka_addresses, kafka_security

logger = logging.getLogger(__name__)

_PLAIN = "PLAINTEXT://"

STOP_TIMEOUT_S = 2.0
"""Longest wait for connections to close."""

AGAIN_S = 0.1
"""Between two attempts to learn where partitions are."""

_send = AIOKafkaConnection.send
_update = AIOKafkaClient._metadata_update
_close = Fetcher.close
_bootstrap = AIOKafkaClient.bootstrap

_opened: dict[asyncio.Task[Any] | None, list[AIOKafkaConnection]] = {}
"""By task that looks for a client's first broker: its connections, which nothing else knows."""

AiokafkaClient: TypeAlias = AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient


def plaintext(bootstrap_servers: str) -> str:
    """An address that is spoken to without TLS or SASL, whatever the environment says: the embedded broker's."""
    return f"{_PLAIN}{bootstrap_servers.removeprefix(_PLAIN)}"


def hosts(bootstrap_servers: str) -> str:
    """An address as clients want it: host:port, comma separated."""
    return bootstrap_servers.removeprefix(_PLAIN)


def security_of(bootstrap_servers: str) -> KafkaSecurity:
    """How to connect to an address: as the environment says, unless the address itself says plaintext.

    Raises:
        UsageError: the environment, or the file that it names, asks for what cannot be.
    """
    return KafkaSecurity() if bootstrap_servers.startswith(_PLAIN) else kafka_security()


def client_options(bootstrap_servers: str) -> dict[str, Any]:
    """What every aiokafka client of a cluster is given: where it is, TLS and SASL.

    Raises:
        UsageError: as `security_of`, or there is no such address.
    """
    kafka_addresses(hosts(bootstrap_servers))
    _repair_aiokafka()
    if not are_bounded():
        bound_batches(round(from_environment().decompressed_bytes))
    return {"bootstrap_servers": hosts(bootstrap_servers), **_secured(security_of(bootstrap_servers))}


def _secured(security: KafkaSecurity) -> dict[str, Any]:
    options: dict[str, Any] = {"security_protocol": security.security_protocol}
    if security.tls:
        options["ssl_context"] = tls_context(security)
    if security.sasl:
        options["sasl_mechanism"] = security.sasl_mechanism
        if security.sasl_mechanism == "OAUTHBEARER":
            from inferline_stream.kafka.access_tokens import AccessTokens

            options["sasl_oauth_token_provider"] = AccessTokens(security)
        else:
            options["sasl_plain_username"] = security.sasl_username
            options["sasl_plain_password"] = security.sasl_password
    return options


def tls_context(security: KafkaSecurity) -> ssl.SSLContext:
    """Whom to trust, and the client's own certificate; the broker's name is checked.

    Raises:
        UsageError: a file holds no certificate, or no key that fits.
    """
    file, authorities = security.ssl_certificate_location, security.ssl_ca_location
    try:
        context = ssl.create_default_context(cafile=authorities or None)
        if file:
            authorities = ""
            # An empty password, too: without one OpenSSL asks for it at the terminal, and waits.
            context.load_cert_chain(file, security.ssl_key_location or None, security.ssl_key_password)
    except (OSError, ValueError) as error:
        which = f"ssl.ca.location={authorities}" if authorities else f"ssl.certificate.location={file}"
        remedy = "give PEM files, and the key that fits, with its password where it has one"
        raise UsageError(f"Kafka's {which} cannot be used ({error}); {remedy}") from None
    return context


async def unreachable(bootstrap_servers: str, otherwise: str = "") -> Unreachable:
    """The error to raise where a client cannot connect: asks the broker once more, because aiokafka only logs why.

    Args:
        bootstrap_servers: of the cluster.
        otherwise: what to say where no broker has turned us away.
    """
    silent = f"Kafka at {hosts(bootstrap_servers)} does not answer; start it, or give another --bootstrap-servers"
    return Unreachable(await refused(bootstrap_servers) or otherwise or silent)


async def refused(bootstrap_servers: str, security: KafkaSecurity | None = None) -> str:
    """Why a broker that listens turns us away, in words without secrets; empty if it does not, or nobody listens.

    Args:
        bootstrap_servers: of the cluster.
        security: of another user than this process's own.
    """
    security = security or security_of(bootstrap_servers)
    where, port = kafka_addresses(hosts(bootstrap_servers))[0]
    try:
        connection = await create_conn(where, port, request_timeout_ms=3000, **_secured(security))
    except ssl.SSLCertVerificationError as error:
        return (
            f"the certificate of Kafka at {where}:{port} is not trusted: {error.verify_message}; "
            "give the authority that signed it as ssl.ca.location"
        )
    except ssl.SSLError as error:
        return f"Kafka at {where}:{port} does not speak TLS, or asks for a certificate: {error.reason}"
    except Unreachable as error:
        return str(error)
    except KafkaError as error:
        if "auth" in type(error).__name__.lower() or "sasl" in type(error).__name__.lower():
            return (
                f"Kafka at {where}:{port} refuses user {security.user!r} with {security.sasl_mechanism}: check "
                "sasl.username, sasl.password and sasl.mechanism"
            )
        return ""
    except (OSError, ValueError, TimeoutError):
        return ""
    connection.close()
    return ""


async def in_time(bootstrap_servers: str, work: Any, timeout_s: float, client: AiokafkaClient) -> Any:
    """The result of a client's start or first request; where that fails, the client is closed.

    Args:
        bootstrap_servers: of the cluster.
        work: to be awaited.
        timeout_s: longest wait for it.
        client: whose work it is.

    Raises:
        Unreachable: no answer in time, or a refusal.
    """
    async with closed_on_failure(client):
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except TimeoutError as error:
            raise await _silent(bootstrap_servers, timeout_s) from error
        except KafkaConnectionError as error:
            raise await unreachable(bootstrap_servers) from error
        except KafkaError as error:
            raise await unreachable(bootstrap_servers, f"Kafka refuses: {error}") from error


async def started(client: AIOKafkaConsumer | AIOKafkaProducer, bootstrap_servers: str, timeout_s: float) -> None:
    """Start a client, trying again until the time is up: a broker may be restarting. One that turns us away is not."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    async with closed_on_failure(client):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await client.start()
            except (KafkaConnectionError, TimeoutError) as error:
                if loop.time() + 0.2 >= deadline or await refused(bootstrap_servers):
                    raise await _silent(bootstrap_servers, timeout_s) from error
                await asyncio.sleep(0.2)
            else:
                return


async def _silent(bootstrap_servers: str, timeout_s: float) -> Unreachable:
    where = hosts(bootstrap_servers)
    return await unreachable(
        bootstrap_servers, f"Kafka at {where} does not answer within {timeout_s:g} s; is it running?"
    )


@contextmanager
def answered(bootstrap_servers: str) -> Iterator[None]:
    """Raise Unreachable where Kafka does not answer what is asked here, or refuses it."""
    try:
        yield
    except (KafkaError, OSError) as error:
        raise Unreachable(f"Kafka at {hosts(bootstrap_servers)} does not answer: {error!r}") from error


async def wait_for_kafka(bootstrap_servers: str, timeout_s: float) -> None:
    """Wait until Kafka answers: it may be starting.

    Raises:
        Unreachable: it does not within this time, or turns us away.
    """
    consumer = AIOKafkaConsumer(**client_options(bootstrap_servers), request_timeout_ms=5000)
    await started(consumer, bootstrap_servers, timeout_s)
    await closed(consumer, within_s=1.0)


@asynccontextmanager
async def closed_on_failure(*clients: AiokafkaClient) -> AsyncIterator[None]:
    """Close clients if what is done here fails or is cancelled: nobody else knows them yet."""
    try:
        yield
    except BaseException:
        await closed(*clients, within_s=1.0)
        raise


async def closed(*clients: AiokafkaClient, within_s: float = STOP_TIMEOUT_S) -> None:
    """Close clients whose broker may be gone: in order if that ends in time, and their connections in any case."""
    stops = {asyncio.create_task(_stopped(client)): client for client in clients}
    try:
        _, late = await asyncio.wait(stops, timeout=within_s)
        for stop in late:
            where = ",".join(f"{host}:{port}" for host, port, _ in _network(stops[stop]).hosts)
            logger.warning(
                "Kafka at %s did not answer within %g s: a client was cut off, and what it sent last may be missing; "
                "see whether that broker runs",
                where, within_s,
            )  # fmt: skip
    finally:
        for stop, client in stops.items():
            # Not at once: cancelled here, a stop might not even have begun, and aiokafka's tasks would go on.
            asyncio.get_running_loop().call_soon(stop.cancel)
            cut_off(client)


async def _stopped(client: AiokafkaClient) -> None:
    stop = client.close if isinstance(client, AIOKafkaAdminClient) else client.stop
    # aiokafka may re-raise the cancellation of a task of its own there, and leaves the rest as it is.
    await asyncio.gather(stop(), return_exceptions=True)
    await _network(client).close()


def _network(client: AiokafkaClient) -> AIOKafkaClient:
    return client.client if isinstance(client, AIOKafkaProducer) else client._client


def cut_off(client: AiokafkaClient) -> None:
    """Close a client's connections as it is: what it has under way fails, and it sends nothing any more."""
    network = _network(client)
    network._get_conn = _no_connection  # a task that aiokafka waits for may try once more
    for task in (network._sync_task, *_background(client)):
        if task is not None:
            task.cancel()  # it would connect again
    before, network._conns = network._conns, _Closed()
    for connection in tuple(before.values()):
        connection.close()
    if isinstance(client, AIOKafkaProducer):
        _fail_what_is_left(client)


class _Closed(dict[Any, Any]):
    """Connections of a client that is closed: one that was on its way is closed as it comes."""

    def __setitem__(self, key: Any, connection: Any) -> None:
        super().__setitem__(key, connection)
        connection.close()


async def _no_connection(*_: Any, **__: Any) -> None:
    """In place of a connection: aiokafka takes it for a broker that is not ready."""


def _fail_what_is_left(client: AIOKafkaProducer) -> None:
    """Fail the records that a closed client still has: whatever waits for one of them would wait for ever."""
    left, error = client._message_accumulator, KafkaTimeoutError("the client was closed before Kafka answered")
    for batch in (*itertools.chain.from_iterable(left._batches.values()), *left._pending_batches):
        batch.failure(error)
        for future in (batch.future, batch._drain_waiter):
            future.exception()  # nobody has to wait for these


def _background(client: AiokafkaClient) -> Iterator[asyncio.Task[Any] | None]:
    """Tasks of a client that use its connections, as far as a stop that ended early may have left them."""
    if isinstance(client, AIOKafkaProducer):
        yield client._sender.sender_task
    elif isinstance(client, AIOKafkaConsumer) and client._fetcher is not None:
        yield client._fetcher._fetch_task
        yield from tuple(client._fetcher._pending_tasks)


def _repair_aiokafka() -> None:
    """Replace what is wrong in it where a broker goes away; more than once does no harm."""
    AIOKafkaClient.bootstrap = _bootstrap_or_close
    aiokafka.client.create_conn = _connect_and_note
    AIOKafkaConnection.send = _send_or_lose
    AIOKafkaClient._metadata_update = _update_or_wait
    Fetcher.close = _close_whole


def _send_or_lose(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
    """aiokafka takes an OSError for the loss of the connection; uvloop raises RuntimeError once it is closed."""
    try:
        return _send(self, request, expect_response)
    except KafkaError:  # a RuntimeError, too
        raise
    except RuntimeError as error:
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: {error}") from error


async def _bootstrap_or_close(self: AIOKafkaClient) -> None:
    """aiokafka forgets the connection to its first broker where it is cancelled before that has answered."""
    task = asyncio.current_task()
    _opened[task] = []
    try:
        await _bootstrap(self)
    except BaseException:
        for connection in _opened[task]:
            connection.close()
        raise
    finally:
        del _opened[task]


async def _connect_and_note(*args: Any, **options: Any) -> AIOKafkaConnection:
    connection = await create_conn(*args, **options)
    _opened.get(asyncio.current_task(), []).append(connection)
    return connection


async def _update_or_wait(self: AIOKafkaClient, cluster: Any, topics: Any) -> bool:
    """aiokafka's producer asks without end, and without a pause, where a partition had no leader and Kafka is away."""
    updated: bool = await _update(self, cluster, topics)
    if not updated:
        await asyncio.sleep(AGAIN_S)
    return updated


async def _close_whole(self: Fetcher) -> None:
    """aiokafka's raises CancelledError where a fetch waits for its next try, and the stop leaves connections open."""
    self._fetch_task.cancel()
    await asyncio.gather(self._fetch_task, return_exceptions=True)
    for task in self._pending_tasks:
        task.cancel()
    await asyncio.gather(*self._pending_tasks, return_exceptions=True)
    self._pending_tasks.clear()
    await _close(self)
