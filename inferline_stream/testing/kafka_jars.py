"""Apache Kafka's jars, from Maven Central into a cache folder that several starters may share."""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from inferline_stream.errors import Unreachable
from inferline_stream.settings import KAFKA_VERSION

logger = logging.getLogger(__name__)

OLDEST_JAVA = 17

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>inferline-stream</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>VERSION</version>
    </dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


def kafka_jars(cache: Path, version: str = KAFKA_VERSION) -> Path:
    """Return the folder of Kafka's jars; downloads them on first use.

    It appears whole or not at all, and one starter downloads while others wait for it.

    Args:
        cache: where downloads are kept.
        version: of Kafka.

    Raises:
        Unreachable: no Java, no Maven, or the download failed.
    """
    folder = _folder(cache, version)
    lack = why_no_java(cache, version)
    if lack is not None:
        raise Unreachable(f"no local Apache Kafka: {lack}")
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _download(folder, version)
    return folder


def why_no_java(cache: Path, version: str = KAFKA_VERSION) -> str | None:
    """What a local Kafka lacks, as a clause, or None if it can run."""
    java = shutil.which("java")
    if java is None:
        return f"there is no Java (version {OLDEST_JAVA} or later is needed)"
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    own = re.search(r'version "(\d+)', shown)
    if own is None or int(own[1]) < OLDEST_JAVA:
        return f"{java} is Java {own[1] if own else 'of an unknown version'}, older than {OLDEST_JAVA}"
    if shutil.which("mvn") is None and not _folder(cache, version).is_dir():
        return f"there is no Maven (`mvn`) to download Kafka's jars to {_folder(cache, version)}"
    return None


def _folder(cache: Path, version: str) -> Path:
    return cache / f"kafka-{version}"


def _download(folder: Path, version: str) -> None:
    logger.info("downloading Apache Kafka %s to %s", version, folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as workshop:
        (Path(workshop) / "pom.xml").write_text(_POM.replace("VERSION", version), encoding="utf-8")
        jars = Path(workshop) / "jars"
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={jars}"], cwd=workshop, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Unreachable(f"Maven could not fetch Apache Kafka {version}: {done.stdout[-1500:]}")
        jars.rename(folder)
