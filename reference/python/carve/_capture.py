"""A dump of what a kernel was called with and what it returned."""

from __future__ import annotations

import functools
import inspect
import sys

import numpy as np

from . import _carve
from ._adapters import (
    adapter_named,
    adapter_of,
    name_of,
    names_of_adapters,
    signature_of,
)
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


def _of_torch(outputs: dict, inputs: dict, seed: int) -> tuple[dict, dict]:
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


def _jax_arrays(passed: dict) -> dict:
    """Those of jax among the arguments.

    Raises ValueError where one has no numbers yet.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return {}
    found = {n: x for n, x in passed.items() if isinstance(x, jax.Array)}
    for name, x in found.items():
        if isinstance(x, jax.core.Tracer):
            raise ValueError(
                f"{name}: expected an array, got what jax traces; call the captured "
                "function outside of jax.jit and jax.grad"
            )
    return found


def _of_jax(call, leaves: dict, results_of, seed: int):
    """What `call(leaves)` returns, seeded cotangents of the outputs, and by
    jax.vjp the gradients of the leaves."""
    import jax

    floats = lambda x: jax.numpy.issubdtype(x.dtype, jax.numpy.floating)

    def outputs_and_all(leaves):
        returned = call(leaves)
        known = named_outputs(returned, results_of)
        return {n: x for n, x in known.items() if n in OUTPUTS and floats(x)}, returned

    outputs, back, returned = jax.vjp(outputs_and_all, leaves, has_aux=True)
    random = np.random.default_rng(seed)
    cotangents = {
        n: jax.numpy.asarray(random.standard_normal(x.shape), x.dtype)
        for n, x in outputs.items()
    }
    (found,) = back(cotangents)
    return returned, {"d" + n: x for n, x in cotangents.items()}, found


class _Given:
    """What a call passes, by parameter, defaults included."""

    def __init__(self, signature, args, kwargs):
        self._bound = signature.bind(*args, **kwargs)
        self._bound.apply_defaults()
        self.passed = dict(self._bound.arguments)
        self._others = None
        for p in signature.parameters.values():
            if p.kind is p.VAR_KEYWORD:
                self._others = p.name
                self.passed.update(self.passed.pop(p.name, {}))

    def call(self, fn, instead: dict):
        """The call with other values of some parameters."""
        arguments = self._bound.arguments
        if self._others is not None:
            arguments[self._others] = dict(arguments.get(self._others, {}))
        for parameter, value in instead.items():
            if parameter in arguments:
                arguments[parameter] = value
            else:
                arguments[self._others][parameter] = value
        return fn(*self._bound.args, **self._bound.kwargs)


def _read(family: str, names: dict, passed: dict):
    """(family, tensors, settings) of a call whose parameters are named as here
    or in `names`."""
    tensors, settings = {}, {}
    for parameter, value in passed.items():
        name = names.get(parameter, parameter)
        if name in SETTINGS:
            settings[name] = value
        elif value is not None and (parameter in names or name in tensors_of(family)):
            tensors[name] = value
    return family, tensors, settings


def capture(
    fn,
    *,
    file,
    family=None,
    adapter=None,
    names=None,
    outputs=None,
    backward=True,
    seed=0,
    **settings,
):
    """`fn`, but its first call is also written to `file` as a dump.

    fn        a kernel's entry point, called with arrays of torch, numpy, ...
    file      path of the safetensors file
    family    member of the family; without it, the call is read as the
              adapter says
    adapter   "package.function", whose arguments and meaning of them fn has;
              found by fn's module and name where neither it nor family is
              given, e.g. for "fla.chunk_gated_delta_rule"
    names     with family: what fn's parameters are called here,
              {"h0": "initial_state"}; a name may be that of a setting:
              {"use_qk_l2norm": "l2norm"}.  Parameters named as tensors or
              settings are need no entry, others are left out
    outputs   names of what fn returns, in order
    backward  the gradients too, where they can be had; False for a function
              of jax that has no derivative
    settings  of the dump, as in `carve.verify`; they override what the call
              says

    Where torch tensors among the inputs require gradients, seeded cotangents
    are sent back through torch's autograd and the gradients written too; of
    arrays of jax all that hold floating-point numbers, by jax.vjp.

    Raises ValueError where nothing says how to read a call, and, before fn is
    called, where a call has an argument that a dump cannot express.
    """
    if adapter is not None and (family is not None or names is not None):
        raise ValueError("adapter: expected without family and names")
    row = None
    if adapter is not None:
        row = adapter_named(adapter)
    elif family is None:
        row = adapter_of(fn)
        if row is None:
            raise ValueError(
                f"family: expected, as {name_of(fn)} is none of "
                + ", ".join(names_of_adapters())
            )
    signature = signature_of(fn, row)
    results_of = outputs or (row.outputs if row else OUTPUTS)
    written = False

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        nonlocal written
        if written:
            return fn(*args, **kwargs)
        given = _Given(signature, args, kwargs)
        passed = given.passed
        if row is None:
            member, inputs, found = _read(family, names or {}, passed)
        else:
            member, inputs, found = row.read(name_of(fn), passed)

        def shaped(name, x):
            return x if row is None else row.shape(passed, name, x)

        kept = {
            name: _snapshot(shaped(name, x))
            for name, x in inputs.items()
            if x is not None
        }
        of_jax = _jax_arrays(passed)
        cotangents, of_inputs = {}, {}
        if of_jax and backward:
            called = (row.names if row else names) or {}
            leaves = {
                p: x
                for p, x in of_jax.items()
                if inputs.get(called.get(p, p)) is x and x.dtype.kind not in "iub"
            }
            returned, cotangents, of_leaves = _of_jax(
                lambda leaves: given.call(fn, leaves), leaves, results_of, seed
            )
            results = named_outputs(returned, results_of)
            of_inputs = {"d" + called.get(p, p): d for p, d in of_leaves.items()}
        else:
            returned = fn(*args, **kwargs)
            results = named_outputs(returned, results_of)
            if backward:
                cotangents, of_inputs = _of_torch(results, inputs, seed)
        everything = {
            **kept,
            **{n: shaped(n, x) for n, x in results.items()},
            **{
                n: shaped(n.removeprefix("d"), x)
                for n, x in {**cotangents, **of_inputs}.items()
            },
        }
        pairs = setting_pairs(member, {**found, **settings})
        _carve.save(readables(everything), pairs, str(file))
        written = True
        return returned

    return wrapper
