"""What the assistant knows: passages of this project's guides, and how they are found."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def passages() -> list[str]:
    """The passages, in the order of their numbers."""
    lines = (HERE / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def sentence_encoder() -> Any:
    """all-MiniLM-L6-v2: the `SentenceEncoder` of the moderation example, which lies beside this one."""
    file = HERE.parent / "moderation" / "sentences.py"
    spec = importlib.util.spec_from_file_location("sentences", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SentenceEncoder()
