"""How do an array and a setting become what the library reads?

Anything with DLPack or the buffer protocol is read where it is.  What neither
of them can say, the 8-bit floats and numpy's bfloat16, goes over as integers
of the same bits with the name of what they stand for.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from . import _carve

TABLES = json.loads(_carve.tables)
SETTINGS = {s["key"] for s in TABLES["settings"]}
OUTPUTS = tuple(t["name"] for t in TABLES["outputs"])

_OF_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def is_torch(x) -> bool:
    """Is it a tensor of torch?  Without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def readable(name: str, x):
    """(name, array, None or the dtype that its bits stand for)."""
    if is_torch(x):
        x = x.detach()
        if x.device.type != "cpu":
            x = x.cpu()
        dtype = str(x.dtype).removeprefix("torch.")
        if dtype.startswith("float8"):
            return name, x.view(sys.modules["torch"].uint8), dtype
        return name, x, None
    if isinstance(x, (list, tuple, int, float)) or hasattr(x, "devices"):
        # Numbers of Python, and of jax, whose arrays numpy sees through.
        x = np.asarray(x)
    if isinstance(x, np.ndarray):
        dtype = x.dtype.name
        if dtype in _OF_BITS:
            return name, x.view(_OF_BITS[dtype]), dtype
        if not x.dtype.isnative:
            x = x.astype(x.dtype.newbyteorder("="))
        if dtype.startswith(("int", "uint")) and dtype != "int32":
            x = x.astype(np.int64)
    return name, x, None


def readables(arrays: dict) -> list:
    """All of them; None is an array that is not there."""
    return [readable(name, x) for name, x in arrays.items() if x is not None]


def setting_pairs(family: str, settings: dict) -> list[tuple[str, str]]:
    """Settings in words; None is one that is not given."""

    def in_words(value) -> str:
        if isinstance(value, (bool, np.bool_)):
            return "true" if value else "false"
        if isinstance(value, (float, np.floating)):
            return repr(float(value))
        return str(value)

    pairs = {"family": family, **settings}
    return [(k, in_words(v)) for k, v in pairs.items() if v is not None]


def tensors_of(family: str) -> dict[str, dict]:
    """Rows of the tensor table for a member of the family, by name."""
    for f in TABLES["families"]:
        if family == f["name"] or family in f["aliases"].split():
            rows = {t["name"]: t for t in f["tensors"]}
            return {**rows, "cu_seqlens": {"name": "cu_seqlens", "required": False}}
    known = ", ".join(f["name"] for f in TABLES["families"])
    raise ValueError(f"family: expected one of {known}, got {family!r}")
