"""A dump of what a kernel was called with and what it returned."""

from __future__ import annotations

import functools
import inspect

import numpy as np

from . import _carve
from ._arrays import (
    OUTPUTS,
    SETTINGS,
    is_torch,
    readables,
    setting_pairs,
    tensors_of,
)


def _snapshot(x):
    """A copy: a kernel may write over its inputs."""
    if is_torch(x):
        return x.detach().clone()
    return np.array(x) if isinstance(x, np.ndarray) else x


def named_outputs(returned, names=OUTPUTS) -> dict:
    """What a kernel returned, by name; None is left out."""
    if isinstance(returned, dict):
        found = dict(returned)
    elif isinstance(returned, (tuple, list)):
        found = dict(zip(names, returned))
    else:
        found = {names[0]: returned}
    return {name: x for name, x in found.items() if x is not None}


def gradients(outputs: dict, inputs: dict, seed: int) -> tuple[dict, dict]:
    """Seeded cotangents of the outputs, and through torch's autograd the
    gradients of the inputs that require them; both empty where none does.

    The graph is kept, so that the caller's own backward still works.
    """
    inputs = {n: x for n, x in inputs.items() if is_torch(x) and x.requires_grad}
    outputs = {
        n: x
        for n, x in outputs.items()
        if n in OUTPUTS and is_torch(x) and x.requires_grad
    }
    if not inputs or not outputs:
        return {}, {}
    import torch

    generator = torch.Generator().manual_seed(seed)
    cotangents = {
        "d" + n: torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
        for n, x in outputs.items()
    }
    found = torch.autograd.grad(
        list(outputs.values()),
        list(inputs.values()),
        list(cotangents.values()),
        retain_graph=True,
        allow_unused=True,
    )
    return cotangents, {
        "d" + n: g for n, g in zip(inputs, found) if g is not None
    }


def capture(fn, *, family, file, names=None, outputs=OUTPUTS, seed=0, **settings):
    """`fn`, but its first call is also written to `file` as a dump.

    fn        a kernel's entry point, called with arrays of torch or numpy
    file      path of the safetensors file
    names     what fn's parameters are called here, {"h0": "initial_state"}; a
              name may be that of a setting: {"use_qk_l2norm": "l2norm"}.
              Parameters named as tensors or settings are need no entry, others
              are left out
    outputs   names of what fn returns, in order
    settings  of the dump, as in `carve.verify`

    Where torch tensors among the inputs require gradients, seeded cotangents
    are sent back through torch's autograd and the gradients written too.
    """
    signature = inspect.signature(fn)
    names = names or {}
    written = False

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        nonlocal written
        if written:
            return fn(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        passed = dict(bound.arguments)
        for p in signature.parameters.values():
            if p.kind is p.VAR_KEYWORD:
                passed.update(passed.pop(p.name, {}))
        pairs = dict(settings)
        inputs = {}
        for parameter, value in passed.items():
            name = names.get(parameter, parameter)
            if name in SETTINGS:
                pairs.setdefault(name, value)
            elif value is not None and (
                parameter in names or name in tensors_of(family)
            ):
                inputs[name] = value
        kept = {name: _snapshot(x) for name, x in inputs.items()}
        returned = fn(*args, **kwargs)
        results = named_outputs(returned, outputs)
        cotangents, of_inputs = gradients(results, inputs, seed)
        everything = {**kept, **results, **cotangents, **of_inputs}
        _carve.save(readables(everything), setting_pairs(family, pairs), str(file))
        written = True
        return returned

    return wrapper
