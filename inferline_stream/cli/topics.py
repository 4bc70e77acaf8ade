"""`topics`: what a pipeline needs in Kafka, for teams that create it elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from inferline_stream.cli.options import Output, Topology, pipeline_of
from inferline_stream.cli.output import console, print_json
from inferline_stream.controlplane.run_options import Prefix
from inferline_stream.errors import InvalidInput, UsageError

if TYPE_CHECKING:
    from inferline_stream.dataplane.kafka_permissions import Permission, Role
    from inferline_stream.kafka.pipeline_topics import WantedTopic


def topics(
    topology: Topology,
    *,
    commands: Annotated[
        bool, typer.Option("--print", help="print the commands that create the topics and grant the rights")
    ] = False,
    principal: Annotated[
        list[str] | None,
        typer.Option(
            help="Kafka user who gets the rights: of a role with ROLE=USER, else of every role; may be repeated. "
            "By default each role is a user of its own, e.g. User:inferline-dispatcher"
        ),
    ] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option("--bootstrap-servers", help="Kafka whose topics to compare with these, host:port")
    ] = None,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """List a pipeline's topics with their settings, and the least rights of each role; nothing is changed.

    With --bootstrap-servers it names each difference from the topics there: exit code 3 if the pipeline could not run
    on them.
    """
    import uvloop

    from inferline_stream.dataplane.kafka_permissions import permission_commands, permissions, topic_commands
    from inferline_stream.kafka.pipeline_topics import topics_of, verify_topics

    pipeline = pipeline_of(topology, groups=True)
    principals = _principals(principal or [])
    wanted, rights = topics_of(pipeline, prefix), permissions(pipeline, prefix)
    differences = uvloop.run(verify_topics(bootstrap_servers, wanted)) if bootstrap_servers else []
    if output == "json":
        _print_json(wanted, rights, [difference.text for difference in differences])
    elif commands:
        print("\n".join([*topic_commands(wanted), *permission_commands(rights, principals)]))
    else:
        _table(wanted, rights)
        for difference in differences:
            print(difference.text)
    if any(difference.blocks for difference in differences):
        raise InvalidInput(*(difference.text for difference in differences if difference.blocks))


def _principals(given: list[str]) -> dict[Role, str]:
    """Return the Kafka user of each role. A user's own name may hold equals signs, as ``User:CN=dispatchers`` does."""
    from inferline_stream.dataplane.kafka_permissions import ROLES

    by_role = {role: text.partition("=")[2] for text in given for role in ROLES if text.startswith(f"{role}=")}
    others = [text for text in given if not text.startswith(tuple(f"{role}=" for role in ROLES))]
    for user in (*by_role.values(), *others):
        if not user.startswith("User:"):
            raise UsageError(
                f"--principal {user!r}: give a Kafka user, e.g. User:alice, or a role's, e.g. "
                f"dispatcher=User:alice; the roles are {', '.join(ROLES)}"
            )
    if len(others) > 1:
        raise UsageError(f"--principal: both {others[0]} and {others[1]} are for every role; name the role of one")
    usual = {role: others[0] if others else f"User:inferline-{role}" for role in ROLES}
    return {role: by_role.get(role, user) for role, user in usual.items()}


def _print_json(wanted: list[WantedTopic], rights: list[Permission], differences: list[str]) -> None:
    from inferline_stream.kafka.pipeline_topics import REPLICATION

    document = {
        "topics": [
            {
                "name": topic.name,
                "partitions": topic.partitions,
                "replication": REPLICATION,
                "settings": dict(topic.settings),
                "purpose": topic.purpose,
            }
            for topic in wanted
        ],
        "permissions": [asdict(right) for right in rights],
        "differences": differences,
    }
    print_json(document)


def _table(wanted: list[WantedTopic], rights: list[Permission]) -> None:
    table = Table(title="Topics", caption="--print prints the commands that create them")
    for name in ("topic", "partitions", "settings", "purpose"):
        table.add_column(name, justify="right" if name == "partitions" else "left", overflow="fold")
    for topic in wanted:
        settings = " ".join(f"{name}={value}" for name, value in topic.settings.items())
        table.add_row(escape(topic.name), str(topic.partitions), settings, escape(topic.purpose))
    console().print(table)
    table = Table(title="Least rights")
    for name in ("role", "of", "name", "operations", "needed by"):
        table.add_column(name, overflow="fold")
    for right in rights:
        name = f"{right.name}*" if right.prefixed else right.name
        table.add_row(right.role, right.resource, escape(name), ", ".join(right.operations), right.needed_by)
    console().print(table)
