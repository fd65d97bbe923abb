#!/usr/bin/env python3
"""Which files does the fuzzer start from?  Writes tests/fuzz/corpus anew.

Each file is one feature of the format, legal or just not: mutations then reach
every check of the reader from nearby.
"""
import json
import pathlib
import struct


def file_of(header, data=b"", length=None):
    if not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header) if length is None else length) + \
        header + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ramp = bytes(range(64))
nonfinite = struct.pack("<4f", float("nan"), float("inf"), -0.0, 1e-45)
corpus = {
    "empty_object": file_of({}),
    "all_dtypes": file_of(
        {
            "d": tensor("F64", [1], 0, 8),
            "l": tensor("I64", [1], 8, 16),
            "f": tensor("F32", [1, 1], 16, 20),
            "i": tensor("I32", [1], 20, 24),
            "h": tensor("F16", [2], 24, 28),
            "b": tensor("BF16", [1, 2], 28, 32),
        }, ramp[:32]),
    "narrow_dtypes": file_of(
        {
            "a": tensor("F8_E4M3", [2], 0, 2),
            "b": tensor("F8_E5M2", [2], 2, 4),
            "c": tensor("I16", [1], 4, 6),
            "d": tensor("U16", [1], 6, 8),
            "e": tensor("U32", [1], 8, 12),
            "f": tensor("I8", [1], 12, 13),
            "g": tensor("U8", [1], 13, 14),
            "h": tensor("BOOL", [2], 14, 16),
            "i": tensor("U64", [1], 16, 24),
        }, ramp[:24]),
    "metadata": file_of(
        {
            "__metadata__": {"family": "gdn2", "scale": "0.125"},
            "cu_seqlens": tensor("I64", [2], 0, 16),
        }, ramp[:16]),
    "scalar_and_empty": file_of(
        {"s": tensor("F32", [], 0, 4), "e": tensor("F64", [0, 3], 4, 4)},
        ramp[:4]),
    "nonfinite": file_of({"x": tensor("F32", [4], 0, 16)}, nonfinite),
    "padded_header": file_of(b'{"x":{"dtype":"F16","shape":[1],'
                             b'"data_offsets":[0,2]}}     ', b"\0<"),
    "escaped_names": file_of({"a\"\n\u00e9": tensor("F16", [1], 0, 2)},
                             b"\0\x7c"),
    "overlap": file_of(
        {"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)},
        ramp[:12]),
    "hole": file_of(
        {"a": tensor("F16", [1], 0, 2), "b": tensor("F16", [1], 4, 6)},
        ramp[:6]),
    "duplicate_name": file_of(
        b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},'
        b'"a":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}', ramp[:4]),
    "shape_overflow": file_of({"x": tensor("F64", [1 << 61, 8], 0, 0)}),
    "negative_axis": file_of({"x": tensor("F32", [-1], 0, 4)}, ramp[:4]),
    "deep_nesting": file_of(b'{"x":{"shape":' + b"[" * 60),
    "length_beyond_file": file_of({"x": tensor("I32", [1], 0, 4)}, ramp[:4],
                                  1 << 26),
    "zero_byte_in_header": file_of(b'{}\0{"x":1}'),
}

folder = pathlib.Path(__file__).parent / "corpus"
folder.mkdir(exist_ok=True)
for name, content in corpus.items():
    (folder / name).write_bytes(content)
