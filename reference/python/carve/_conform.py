"""Does a function conform to a member of the family?  Seeded inputs, a call
for each, a verdict on each."""

from __future__ import annotations

import sys

import numpy as np

from . import _carve
from ._arrays import readables, setting_pairs, tensors_of
from ._capture import gradients, named_outputs
from ._report import Report

#: B, T, H, HV, K, V, whether there is a start state, and how strong the decay
#: is: lengths around that of a chunk, grouped heads, K unlike V.
SMOKE = (
    dict(B=2, T=1, H=1, HV=1, K=8, V=8, start=True, decay=1.0),
    dict(B=1, T=65, H=2, HV=2, K=16, V=16, start=False, decay=0.05),
    dict(B=1, T=64, H=1, HV=2, K=32, V=16, start=True, decay=1.0),
    dict(B=2, T=130, H=2, HV=2, K=16, V=32, start=True, decay=20.0),
)


def _of(name: str, shape: tuple[int, ...], decay: float, random) -> np.ndarray:
    """Numbers that a model would have in the tensor of that name."""
    x = random.standard_normal(shape)
    if name in ("q", "k", "p", "r", "y"):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)
    if name in ("g", "gd"):
        return -decay * np.logaddexp(0, x)
    if name in ("beta", "b", "e", "E", "w", "eta", "w_last"):
        return 1 / (1 + np.exp(-x))
    if name in ("w_down", "w_up"):
        return x / np.sqrt(shape[-1])
    return x


def inputs_of(family: str, case: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors that the family must have, and a start state if the case has
    one, in float64; the same for the same seed."""
    random = np.random.default_rng(seed)
    # Two sub-steps a token, where a family has any.
    sizes = {**case, "N": case["B"], "rho": 4, "Tn": 2 * case["T"]}
    return {
        name: _of(name, tuple(sizes[a] for a in row["axes"]), case["decay"], random)
        for name, row in tensors_of(family).items()
        if row["required"] or (name == "initial_state" and case["start"])
    }


def _numpy_arrays(inputs, dtype):
    return {name: x.astype(dtype) for name, x in inputs.items()}


def _torch_tensors(inputs, dtype, device, backward):
    import torch

    return {
        name: torch.tensor(x, dtype=getattr(torch, dtype), device=device)
        .requires_grad_(backward)
        for name, x in inputs.items()
    }


def assert_conforms(
    fn,
    family,
    *,
    cases=SMOKE,
    arrays=None,
    dtype="float32",
    device="cpu",
    backward=True,
    seed=0,
    **settings,
) -> list[Report]:
    """Calls `fn` with seeded inputs of every case and judges what it returns.

    fn        called with keywords, the names of the family's tensors (q, k, v,
              ..., initial_state where a case has one); returns o, or
              (o, final_state), or a dict by name
    arrays    "torch" or "numpy"; torch where it has been imported
    dtype     of all tensors: "float32", "bfloat16", ...
    backward  of torch tensors: gradients through autograd are judged too,
              where what fn returns has them
    settings  as in `carve.verify`

    Raises AssertionError with the table of each case that fails.
    """
    __tracebackhide__ = True
    if arrays is None:
        arrays = "torch" if "torch" in sys.modules else "numpy"
    if arrays not in ("torch", "numpy"):
        raise ValueError(f'arrays: expected "torch" or "numpy", got {arrays!r}')
    pairs = setting_pairs(family, settings)
    reports, failed = [], []
    for i, case in enumerate(cases):
        inputs = inputs_of(family, case, seed + i)
        if arrays == "torch":
            inputs = _torch_tensors(inputs, dtype, device, backward)
        else:
            inputs = _numpy_arrays(inputs, dtype)
        kept = {
            name: x.detach().clone() if arrays == "torch" else x.copy()
            for name, x in inputs.items()
        }
        outputs = named_outputs(fn(**inputs))
        cotangents, of_inputs = gradients(outputs, inputs, seed + i)
        everything = {**kept, **cotangents, **outputs, **of_inputs}
        report = Report(*_carve.verify(readables(everything), pairs))
        reports.append(report)
        if not report.passed:
            sizes = ", ".join(f"{k} {v}" for k, v in case.items())
            failed.append(f"case {i} ({sizes})\n{report}")
    if failed:
        count = f"{len(failed)} of {len(reports)} cases do not pass"
        raise AssertionError("\n\n".join([count, *failed]))
    return reports
