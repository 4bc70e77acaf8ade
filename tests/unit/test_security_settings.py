import os
import subprocess
import sys

import pytest

from inferline_stream.errors import UsageError
from inferline_stream.kafka.connection import client_options, plaintext, tls_context
from inferline_stream.settings import KafkaSecurity, dispatcher_environment, kafka_addresses, kafka_security
from tests.support.certificates import certify


def test_without_a_word_connections_are_plain_and_with_a_user_they_are_encrypted():
    assert kafka_security({}).security_protocol == "PLAINTEXT"
    user = {"INFERLINE_KAFKA_SASL_USERNAME": "alice", "INFERLINE_KAFKA_SASL_PASSWORD": "secret"}
    assert kafka_security(user).security_protocol == "SASL_SSL"


def test_a_file_names_the_properties_and_the_environment_wins(tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("# who we are\nsasl.username = alice\nsasl.password=a=b\nsasl.mechanism=SCRAM-SHA-512\n")
    found = kafka_security({"INFERLINE_KAFKA_CONFIG": str(file), "INFERLINE_KAFKA_SASL_MECHANISM": "PLAIN"})
    assert (found.sasl_username, found.sasl_password, found.sasl_mechanism) == ("alice", "a=b", "PLAIN")


def test_what_is_shown_of_it_holds_no_secret():
    found = KafkaSecurity(sasl_username="alice", sasl_password="open sesame", ssl_key_password="sesame")
    assert "alice" in f"{found} {found!r}"
    assert "sesame" not in f"{found} {found!r}"


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        ({"SECURITY_PROTOCOL": "TLS"}, "security.protocol='TLS' is none of PLAINTEXT, SSL"),
        ({"SASL_USERNAME": "alice"}, "sasl.password is needed for PLAIN: set INFERLINE_KAFKA_SASL_PASSWORD"),
        ({"SSL_CA_LOCATION": "/nowhere.pem"}, "there is no file /nowhere.pem"),
        ({"CONFIG": "/nowhere.properties"}, "cannot be read"),
        (
            {"SASL_MECHANISM": "OAUTHBEARER", "SASL_OAUTHBEARER_CLIENT_ID": "a",
             "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": "file:///etc/passwd"},
            "must begin with https",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_with_its_remedy(given, reported):
    with pytest.raises(UsageError, match=reported):
        kafka_security({f"INFERLINE_KAFKA_{name}": value for name, value in given.items()})


def test_an_unknown_line_of_the_file_is_named_without_its_value(tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("sasl.username=alice\nsasl.passwort=sesame\n")
    with pytest.raises(UsageError, match="line 2: no property") as raised:
        kafka_security({"INFERLINE_KAFKA_CONFIG": str(file)})
    assert "sesame" not in str(raised.value)


def test_the_embedded_brokers_address_is_spoken_to_in_plain_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("INFERLINE_KAFKA_SASL_USERNAME", "alice")
    monkeypatch.setenv("INFERLINE_KAFKA_SASL_PASSWORD", "secret")
    options = client_options(plaintext("127.0.0.1:9092"))
    assert options == {"bootstrap_servers": "127.0.0.1:9092", "security_protocol": "PLAINTEXT"}
    assert client_options("127.0.0.1:9092")["sasl_plain_username"] == "alice"


def test_dispatchers_of_their_own_user_get_nothing_of_the_controllers(tmp_path):
    controllers = {
        "INFERLINE_KAFKA_SASL_USERNAME": "alice",
        "INFERLINE_KAFKA_SASL_PASSWORD": "secret",
        "INFERLINE_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    }
    file = tmp_path / "dispatchers.properties"
    file.write_text("sasl.username=bob\nsasl.password=sesame\n")
    found = dispatcher_environment({**controllers, "PATH": "/bin", "INFERLINE_DISPATCHER_KAFKA_CONFIG": str(file)})
    assert found == {"PATH": "/bin", "INFERLINE_KAFKA_CONFIG": str(file)}
    bob = kafka_security(found)
    assert (bob.user, bob.sasl_password, bob.sasl_mechanism) == ("bob", "sesame", "PLAIN")


def test_dispatchers_without_a_user_of_their_own_are_the_controllers():
    controllers = {"INFERLINE_KAFKA_SASL_USERNAME": "alice", "INFERLINE_KAFKA_SASL_PASSWORD": "secret"}
    assert dispatcher_environment(controllers) == controllers
    assert dispatcher_environment({**controllers, "INFERLINE_DISPATCHER_KAFKA_SASL_USERNAME": ""}) == controllers


def test_what_cannot_be_of_the_dispatchers_is_named_with_their_own_variable():
    with pytest.raises(
        UsageError, match=r"of the dispatchers: .* set INFERLINE_DISPATCHER_KAFKA_SASL_PASSWORD, or a line"
    ):
        dispatcher_environment({"INFERLINE_DISPATCHER_KAFKA_SASL_USERNAME": "bob"})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("localhost:9092", [("localhost", 9092)]),
        ("localhost", [("localhost", 9092)]),
        ("a:1, b:2,", [("a", 1), ("b", 2)]),
        ("[::1]:1234", [("::1", 1234)]),
        ("[::1]", [("::1", 9092)]),
    ],
)
def test_brokers_are_read_from_an_address(given: str, found: list[tuple[str, int]]) -> None:
    assert kafka_addresses(given) == found


@pytest.mark.parametrize(
    "given",
    ["", ",", "localhost:port", "localhost:", ":9092", "a:0", "a:99999", "http://a:1", "a b:9", "[::1]92", "::1"],
)
def test_what_is_not_an_address_of_kafka_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"is not an address of Kafka; write host:port, e\.g\. localhost:9092"):
        kafka_addresses(f"localhost:9092,{given}" if given.strip(",") else given)


@pytest.fixture
def encrypted(tmp_path):
    """Where the certificate and the encrypted key of a client are."""
    certify(tmp_path, "client")
    key = tmp_path / "encrypted.pem"
    subprocess.run(
        ["openssl", "ec", "-aes256", "-in", str(tmp_path / "client-key.pem"), "-out", str(key),
         "-passout", "pass:sesame"],
        check=True, capture_output=True,
    )  # fmt: skip
    return {"ssl_certificate_location": str(tmp_path / "client.pem"), "ssl_key_location": str(key)}


@pytest.mark.parametrize("password", ["", "open sesame", "x" * 2000, "\udcff"])
def test_a_key_that_the_password_does_not_open_is_refused(encrypted, password):
    with pytest.raises(UsageError, match=r"ssl\.certificate\.location=.* cannot be used"):
        tls_context(KafkaSecurity(**encrypted, ssl_key_password=password))
    tls_context(KafkaSecurity(**encrypted, ssl_key_password="sesame"))


def test_the_password_of_a_key_is_not_asked_for_at_the_terminal(encrypted):
    imports = f"from {tls_context.__module__} import KafkaSecurity, tls_context"
    command = [sys.executable, "-c", f"{imports}\ntls_context(KafkaSecurity(**{encrypted!r}))"]
    reading, writing = os.pipe()  # nobody ever types
    try:
        done = subprocess.run(
            command,
            stdin=reading,
            capture_output=True,
            text=True,
            timeout=30,
            start_new_session=True,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert "Enter PEM pass phrase" not in done.stderr
    assert "UsageError: Kafka's ssl.certificate.location" in done.stderr
