"""Whether replicas can be sealed on this machine, which tests of the seal need."""

from __future__ import annotations

import platform

import pytest

from inferline_stream.isolation.seal import unsupported
from inferline_stream.pipeline.isolation import Isolation

SEALABLE = not unsupported(Isolation())
needs_sandbox = pytest.mark.skipif(not SEALABLE, reason=f"no sandbox on {platform.system()} {platform.release()}")
