"""See the package."""

import asyncio
import sys

from tests.contracts.kube import record

if __name__ == "__main__":
    sys.stdout.write(f"{asyncio.run(record())}\n")
