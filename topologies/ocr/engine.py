"""The detector and the recognizer that `rapidocr` ships, PP-OCRv6's small models, on one thread of onnxruntime."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST_SIDE = 480
"""Pixels to which a page is reduced for the detector."""


def engine() -> Any:
    """The library's engine; it loads a model when that is first used."""
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(1)  # a replica's cores are the plan's affair
    return RapidOCR(
        params={
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Global.log_level": "critical",
            "Global.use_vertical_padding": False,
            "Det.limit_type": "max",
            "Det.limit_side_len": LONGEST_SIDE,
            "Rec.rec_batch_num": 64,  # a batch of the stage is one of the model
        }
    )


def pixels(png: bytes) -> NDArray[np.uint8]:
    """Colours of a picture, shape (height, width, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))
