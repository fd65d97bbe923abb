"""Test vectors: where a suite comes from, and what is in its files."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import struct
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass, field

import numpy as np

from ._arrays import OUTPUTS

_DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8"}


def program() -> str:
    """The program `carve` that came with the package, or one on the path."""
    beside = pathlib.Path(sysconfig.get_path("scripts"), "carve")
    found = str(beside) if beside.exists() else shutil.which("carve")
    if not found:
        raise FileNotFoundError("the program carve is neither installed nor on PATH")
    return found


def run(*words) -> subprocess.CompletedProcess:
    """The program with these words; a ValueError has its message."""
    done = subprocess.run([program(), *words], capture_output=True, text=True)
    if done.returncode not in (0, 1, 2, 3) or (done.returncode == 2 and done.stderr):
        raise ValueError(done.stderr.strip().removeprefix("carve: "))
    return done


def read(path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file of F64, F32 and I64."""
    content = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        numbers = np.frombuffer(
            content[8 + size + begin : 8 + size + end], _DTYPES[info["dtype"]]
        )
        tensors[name] = numbers.reshape(info["shape"])
    return tensors


@dataclass
class Vector:
    """One problem of a suite, its numbers read when they are asked for."""

    path: pathlib.Path
    entry: dict = field(repr=False)  # the manifest's

    @property
    def name(self) -> str:
        return self.entry["name"]

    @property
    def family(self) -> str:
        return self.entry["family"]

    @property
    def regime(self) -> dict[str, str]:
        return self.entry["regime"]

    @property
    def settings(self) -> dict:
        """What is not said by the tensors: `window`, `l2norm`, activations."""
        words = {"true": True, "false": False}
        return {
            k: int(v) if k == "window" else words.get(v, v)
            for k, v in self.entry["settings"].items()
            if k != "family"
        }

    @functools.cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        return read(self.path)

    def _named(self, wanted) -> dict[str, np.ndarray]:
        return {n: x for n, x in self.tensors.items() if wanted(n)}

    @property
    def cotangents(self) -> dict[str, np.ndarray]:
        """do and dfinal_state."""
        return self._named(lambda n: n in self.entry["inputs"] and n[1:] in OUTPUTS)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Everything else that goes in."""
        return self._named(
            lambda n: n in self.entry["inputs"] and n[1:] not in OUTPUTS
        )

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """Exact outputs and gradients."""
        return self._named(lambda n: n in self.entry["outputs"])


@dataclass
class Suite:
    """A folder of vectors."""

    folder: pathlib.Path
    manifest: dict = field(repr=False)

    def __iter__(self):
        for entry in self.manifest["vectors"]:
            yield Vector(self.folder / entry["file"], entry)

    def __len__(self) -> int:
        return len(self.manifest["vectors"])


_SUITES = ("smoke", "standard", "full")
_folders: list[tempfile.TemporaryDirectory] = []  # until the interpreter ends


@functools.cache
def _made(words: tuple[str, ...]) -> pathlib.Path:
    folder = tempfile.TemporaryDirectory(prefix="carve.")
    _folders.append(folder)
    path = pathlib.Path(folder.name, "suite")
    run("vectors", *words, "-o", str(path))
    return path


def vectors(suite="smoke", *, only=None, seed=1, profiles=()) -> Suite:
    """Test vectors, made by the program once in a process.

    suite     "smoke", "standard", "full", or a folder that `carve vectors` wrote
              (one of such a name with its path, as in "./smoke")
    only      regimes of a suite that is made: {"family": "gdn", "decay": ["slow",
              "strong"]}; their pairs are covered anew
    profiles  whose units the manifest is to hold; all if empty
    """
    folder = pathlib.Path(suite)
    if suite in _SUITES or not folder.is_dir():
        words = ["--suite", str(suite), "--seed", str(seed)]
        for factor, values in (only or {}).items():
            values = [values] if isinstance(values, str) else values
            words += ["--only", f"{factor}={','.join(values)}"]
        if profiles:
            words += ["--profile", ",".join(profiles)]
        folder = _made(tuple(words))
    return Suite(folder, json.loads((folder / "manifest.json").read_text()))
