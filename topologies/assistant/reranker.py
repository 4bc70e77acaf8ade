"""A model server of the Open Inference Protocol v2: passages in the order in which they answer a question.

    python reranker.py PORT

It stands for Triton, KServe or MLServer, which speak the same protocol. Late interaction (ColBERT, Khattab and Zaharia,
SIGIR 2020): of each word of the question the most similar word of a passage, in the mean. The words of the passages
are embedded once, as the server starts.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from aiohttp import web
from passages import passages, sentence_encoder

MODEL = "rerank"


class Reranker:
    """The model: how well each of some passages answers a question."""

    def __init__(self) -> None:
        self._encoder = sentence_encoder()
        self._words = [words for text in passages() for words in self._encoder.words([text])]

    def __call__(self, questions: list[str], candidates: np.ndarray) -> np.ndarray:
        """Return scores, shape (questions, candidates), of the passages with these numbers."""
        asked = self._encoder.words(questions)
        return np.array(
            [
                [(words @ self._words[number].T).max(axis=1).mean() for number in row]
                for words, row in zip(asked, candidates, strict=True)
            ]
        )


class Server:
    """Answers one request at a time: the model keeps its core busy, so that others could only wait beside it."""

    def __init__(self) -> None:
        self._model = Reranker()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get(f"/v2/models/{MODEL}/ready", self._ready)
        app.router.add_post(f"/v2/models/{MODEL}/infer", self._infer)
        return app

    async def _ready(self, request: web.Request) -> web.Response:
        return web.json_response({"name": MODEL, "ready": True})

    async def _infer(self, request: web.Request) -> web.Response:
        try:
            inputs = {each["name"]: each for each in (await request.json())["inputs"]}
            questions = [str(text) for text in inputs["question"]["data"]]
            candidates = np.array(inputs["candidates"]["data"], dtype=np.int64).reshape(len(questions), -1)
            scores = self._model(questions, candidates)
        except (KeyError, TypeError, ValueError, IndexError, json.JSONDecodeError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
        return web.json_response({"model_name": MODEL, "outputs": [_output("scores", scores)]})


def _output(name: str, values: np.ndarray) -> dict[str, Any]:
    return {"name": name, "shape": list(values.shape), "datatype": "FP64", "data": values.ravel().tolist()}


if __name__ == "__main__":
    web.run_app(Server().app(), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
