"""The columns of the tables that pass between the steps, and of the dataset."""

from __future__ import annotations

import pyarrow as pa

_PATH = pa.field("path", pa.string())
_WIDTH = pa.field("width", pa.int32())
_HEIGHT = pa.field("height", pa.int32())
_STATUS = pa.field("status", pa.string())
_ERROR = pa.field("error", pa.string())
_SECONDS = pa.field("seconds", pa.float64())

_LABEL = pa.field("label", pa.string())
_SCORE = pa.field("score", pa.float64())
_BOX = pa.field("box", pa.list_(pa.int32()))
_BITS = pa.field("bits", pa.large_binary())
_RLE = pa.field("mask", pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()}))

PIXELS_FIELD = pa.field("pixels", pa.large_binary())

DECODED_SCHEMA = pa.schema([_PATH, _WIDTH, _HEIGHT, _ERROR, PIXELS_FIELD])

SEGMENTED_SCHEMA = pa.schema(
    [
        *(_PATH, _WIDTH, _HEIGHT, _ERROR, _SECONDS),
        pa.field("instances", pa.list_(pa.struct([_LABEL, _SCORE, _BOX, _BITS]))),
    ]
)

DATASET_SCHEMA = pa.schema(
    [
        *(_PATH, _WIDTH, _HEIGHT, _STATUS, _ERROR, _SECONDS),
        pa.field("instances", pa.list_(pa.struct([_LABEL, _SCORE, _BOX, _RLE]))),
    ]
)
