"""Exact results of gated delta-rule linear attention, and verdicts on kernels.

    import carve
    report = carve.verify("gdn", {"q": q, "k": k, "v": v, "g": g, "beta": beta},
                          {"o": o, "final_state": state})
    print(report)

Tensors are named as `carve families` lists them and may be arrays of numpy,
torch, jax, or anything else that speaks DLPack or the buffer protocol; a
setting, e.g. `scale` or `state_layout`, is named as in a dump's metadata.
"""

from __future__ import annotations

import numpy as np

from . import _carve
from ._arrays import OUTPUTS, SETTINGS, TABLES, readables, setting_pairs
from ._capture import capture
from ._conform import Score, assert_conforms, check_suite
from ._report import Relation, Report, Stages
from ._vectors import Suite, Vector, vectors

__version__ = _carve.__version__
__all__ = [
    "Relation",
    "Report",
    "Score",
    "Stages",
    "Suite",
    "Vector",
    "assert_conforms",
    "capture",
    "check_suite",
    "diagnose",
    "families",
    "reference",
    "relate",
    "save",
    "stages",
    "vectors",
    "verify",
]


def families() -> dict[str, str]:
    """Names and titles of the members of the family."""
    return {f["name"]: f["title"] for f in TABLES["families"]}


def reference(family: str, **arguments) -> dict[str, np.ndarray]:
    """Exact results, computed in double-double, in float64.

    `o` and `final_state`; where `do` or `dfinal_state` is among the tensors,
    also the gradient of each input, under its name with a d before it.

    Raises ValueError naming the tensor or setting that cannot be used.
    """
    settings = {k: v for k, v in arguments.items() if k in SETTINGS}
    arrays = {k: v for k, v in arguments.items() if k not in SETTINGS}
    pairs = setting_pairs(family, settings)
    tensors = readables(arrays)
    shapes = {n: tuple(_carve.result_shape(tensors, pairs, n)) for n in OUTPUTS}
    cotangents = {"d" + name for name in OUTPUTS}
    given = {name: x for name, x, _ in tensors}
    backward = not cotangents.isdisjoint(given)
    if backward:
        for name, x in given.items():
            if name not in cotangents and name != "cu_seqlens":
                shapes["d" + name] = tuple(x.shape)
    results = {name: np.empty(shape) for name, shape in shapes.items()}
    _carve.solve(tensors, pairs, readables(results), backward)
    return results


def verify(family: str, inputs: dict, outputs: dict, **settings) -> Report:
    """Judges what a kernel made of its inputs.

    `outputs` are o and final_state and, where `inputs` has do or dfinal_state,
    gradients: dq, dk, ...  Settings are those of a dump, `threads`, and
    the options of `carve verify`: `profile`, `chunk`, `exp`, `seed`,
    `threshold`, `max_threshold`, `bitlike` and `strict`.  What fails is held
    against known mistakes; `diagnose=False` leaves that out, `diagnose=True`
    does it even where it takes more than about a minute of one core.

    Raises ValueError naming the tensor or setting that cannot be used.
    """
    both = inputs.keys() & outputs.keys()
    if both:
        raise ValueError(f"{min(both)}: expected among inputs or outputs, got both")
    pairs = setting_pairs(family, settings)
    return Report(*_carve.verify(readables({**inputs, **outputs}), pairs))


def diagnose(family: str, inputs: dict, outputs: dict, **settings) -> list[dict]:
    """Which known mistakes explain what a kernel made of its inputs?

    The best first, each with `id`, `tensors`, `ratio` and `text`; none where
    no tensor fails and where nothing explains it.  Arguments are those of
    `verify`, which does the same; `Report.diagnosis` has it.
    """
    return verify(family, inputs, outputs, **{**settings, "diagnose": True}).diagnosis


def relate(relation: str, family: str, *dumps: dict, **settings) -> Relation:
    """Do dumps agree where a relation says that they must?

    `relation` is repeat, causal, split, decode, alone, pack, permute, rollback
    or pool; each dump has inputs and outputs under their names, in the order of
    `carve relate --NAME A B`.  Settings are those of a dump, and `threads`.

    Raises ValueError naming what does not fit.
    """
    pairs = setting_pairs(family, settings)
    named = [(chr(ord("A") + i), readables(d), pairs) for i, d in enumerate(dumps)]
    return Relation(*_carve.relate(relation, named))


def stages(family: str, inputs: dict, stages: dict | None = None, path=None, **settings) -> Stages:
    """Judges what a chunked kernel has inside, the first wrong stage by name.

    `stages` are any of G, L, T, W, U, P, S and their cotangents, as `carve
    stages --help` lists them; `path` is where all of them are written, exact and
    as a kernel rounds them, to a safetensors file.  Settings are those of a
    dump, `chunk` and `threads`.

    Raises ValueError naming the tensor or setting that cannot be used, and where
    there is neither a stage nor a path.
    """
    pairs = setting_pairs(family, settings)
    tensors = readables({**inputs, **(stages or {})})
    return Stages(*_carve.stages(tensors, pairs, None if path is None else str(path)))


def save(path, family: str, tensors: dict, **settings) -> None:
    """Writes a dump, a safetensors file that the program `carve` reads."""
    pairs = setting_pairs(family, settings)
    _carve.save(readables(tensors), pairs, str(path))
