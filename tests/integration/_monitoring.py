"""Prometheus and Alertmanager as people run them, for the length of a test, and a webhook that hears the alerts."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from inferline_stream.testing.local_kafka import free_ports

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Notice:
    """One alert as the webhook heard it."""

    at_s: float
    name: str
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]


@dataclass
class Monitoring:
    """Prometheus at `prometheus`, and everything that its Alertmanager has sent."""

    prometheus: str
    notices: list[Notice] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, name: str, status: str, timeout_s: float, since_s: float = 0.0, **labels: str) -> Notice:
        """The first notice of an alert in that state, with these labels, since then."""

        def matches(notice: Notice) -> bool:
            return (notice.name, notice.status) == (name, status) and labels.items() <= notice.labels.items()

        return self._wait(f"{name} {status}", matches, timeout_s, since_s)

    def _wait(self, what: str, matches: Callable[[Notice], bool], timeout_s: float, since_s: float) -> Notice:
        def found() -> Notice | None:
            return next((n for n in self.notices if n.at_s >= since_s and matches(n)), None)

        with self.news:
            if not self.news.wait_for(lambda: found() is not None, timeout_s):
                heard = [(round(n.at_s - since_s, 1), n.name, n.status) for n in self.notices]
                raise AssertionError(f"no notice of {what} within {timeout_s:g} s; heard: {heard}")
            notice = found()
        assert notice is not None
        return notice

    def query(self, expr: str) -> list[dict]:
        """An instant query."""
        return self._ask("query", query=expr)["result"]

    def query_range(self, expr: str, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """(time, value) of the only series, each second."""
        found = self._ask("query_range", query=expr, start=start_s, end=end_s, step=1)["result"]
        return [(float(t), float(v)) for series in found for t, v in series["values"]]

    def rules(self) -> list[dict]:
        """Every rule with the health of its last evaluation."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _ask(self, what: str, **parameters: object) -> dict:
        url = f"{self.prometheus}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)["data"]


@contextmanager
def monitoring(folder: Path, rules: Path, metrics_port: int) -> Iterator[Monitoring]:
    """Scrape and evaluate once a second, and send at once what fires and what is resolved."""
    prometheus_port, alertmanager_port = free_ports(2)
    found = Monitoring(f"http://{HOST}:{prometheus_port}")
    with ExitStack() as stack:
        webhook = stack.enter_context(_webhook(found))
        (folder / "alertmanager.yml").write_text(
            json.dumps(
                {
                    "route": {
                        "receiver": "webhook",
                        "group_by": ["alertname", "stage", "input"],
                        "group_wait": "0s",
                        "group_interval": "1s",
                        "repeat_interval": "1h",
                    },
                    "receivers": [{"name": "webhook", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
                }
            )
        )
        (folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"},
                    "rule_files": [str(rules)],
                    "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"{HOST}:{alertmanager_port}"]}]}]},
                    "scrape_configs": [
                        {"job_name": "inferline", "static_configs": [{"targets": [f"{HOST}:{metrics_port}"]}]}
                    ],
                }
            )
        )
        _started(
            stack,
            folder / "alertmanager.log",
            "prometheus-alertmanager",
            f"--config.file={folder}/alertmanager.yml",
            f"--storage.path={folder}/alertmanager",
            f"--web.listen-address={HOST}:{alertmanager_port}",
            "--cluster.listen-address=",
        )
        _started(
            stack,
            folder / "prometheus.log",
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/prometheus",
            f"--web.listen-address={HOST}:{prometheus_port}",
            "--rules.alert.resend-delay=1s",
        )
        for url in (found.prometheus, f"http://{HOST}:{alertmanager_port}"):
            _wait_until_ready(f"{url}/-/ready", folder)
        yield found


def _started(stack: ExitStack, log: Path, *command: str) -> None:
    process = stack.enter_context(
        subprocess.Popen(command, stdout=stack.enter_context(log.open("wb")), stderr=subprocess.STDOUT)
    )
    stack.callback(process.kill)


def _wait_until_ready(url: str, folder: Path, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline_s:
                logs = "\n".join(log.read_text() for log in folder.glob("*.log"))
                raise AssertionError(f"{url} was not ready within {timeout_s:g} s:\n{logs}") from None
            time.sleep(0.1)


@contextmanager
def _webhook(found: Monitoring) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with found.news:
                for alert in body["alerts"]:
                    labels = alert["labels"]
                    found.notices.append(
                        Notice(time.time(), labels["alertname"], alert["status"], labels, alert["annotations"])
                    )
                found.news.notify_all()
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
