"""The operators torch.ops.carve.{forward,backward,decode}: on a GPU the CUDA
kernels, on a CPU the compiled reference, which computes in double and rounds
once.  Absent tensors are None, absent results are empty.

A family is a string argument, so that a new one needs no new operator.
"""

from __future__ import annotations

import torch

from .. import _carve
from .._arrays import readables, setting_pairs
from . import _native

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? beta, Tensor? b, Tensor? w, "
    "Tensor? initial_state, Tensor? w_down, Tensor? w_up, Tensor? cu_seqlens, "
    "float scale, int window"
)
#: In the order of the arguments: what has a gradient.
DIFFERENTIABLE = (*_native.ROWS, "initial_state", "w_down", "w_up")

_library = torch.library.Library("carve", "DEF")
_library.define(
    f"forward(str family, {_INPUTS}, bool with_state) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"backward(str family, {_INPUTS}, Tensor? d_o, Tensor? d_final_state, "
    "Tensor window_means, bool[] wanted) -> Tensor[]"
)
_library.define(
    "decode(str family, Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? beta, "
    "Tensor? b, Tensor? w, Tensor(a!) state, float scale) -> Tensor"
)


def _sequences(q, cu_seqlens) -> int:
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _state_dtype(q):
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _empty_results(family, q, v, cu_seqlens, window, with_state):
    """Room for o, the final state and the means of the windows."""
    B, T, _, K = q.shape
    HV, V = v.shape[2:]
    N = _sequences(q, cu_seqlens)
    o = q.new_empty((B, T, HV, V))
    state = q.new_empty(
        (N, HV, K, V) if with_state else (0,), dtype=_state_dtype(q)
    )
    slots = B * T // window + N if family == "carve" and q.is_cuda else 0
    # Not all slots are written, and what is returned must not be chance.
    means = q.new_zeros((slots, HV, V) if slots else (0,), dtype=torch.float32)
    return o, state, means


def _named(q, k, v, g, beta, b, w):
    return {"q": q, "k": k, "v": v, "g": g, "beta": beta, "b": b, "w": w}


def _pairs(family, scale, window):
    settings = {"scale": scale, "precision": "double"}
    if family == "carve":
        settings["window"] = window
    return setting_pairs(family, settings)


def _forward_cpu(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window, with_state
):
    results = _empty_results(family, q, v, cu, window, with_state)
    inputs = {
        **_named(q, k, v, g, beta, b, w),
        "initial_state": state,
        "w_down": down,
        "w_up": up,
        "cu_seqlens": cu,
    }
    out = {"o": results[0]}
    if with_state:
        out["final_state"] = results[1]
    _carve.solve(readables(inputs), _pairs(family, scale, window), readables(out), False)
    return results


def _forward_cuda(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window, with_state
):
    results = _empty_results(family, q, v, cu, window, with_state)
    o, final, means = results
    inputs = {n: _native.rows(x) for n, x in _named(q, k, v, g, beta, b, w).items()}
    call = _native.call_of(family, inputs, state, cu, scale, window, down, up)
    _native.forward(
        call,
        q.device,
        o,
        final if with_state else None,
        means if means.numel() else None,
    )
    return results


def _forward_fake(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window, with_state
):
    return _empty_results(family, q, v, cu, window, with_state)


def _empty_gradients(inputs, wanted):
    """Room for the gradients asked for: that of g in float32 on a GPU."""

    def room(name, x):
        dtype = torch.float32 if name == "g" and x.is_cuda else x.dtype
        return torch.empty(x.shape, dtype=dtype, device=x.device)

    return [
        room(n, x) if x is not None and want else inputs[0].new_empty((0,))
        for n, x, want in zip(DIFFERENTIABLE, inputs, wanted)
    ]


def _backward_cpu(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window,
    d_o, d_state, means, wanted,
):
    inputs = (q, k, v, g, beta, b, w, state, down, up)
    results = _empty_gradients(inputs, wanted)
    given = {
        **dict(zip(DIFFERENTIABLE, inputs)),
        "cu_seqlens": cu,
        "do": d_o,
        "dfinal_state": d_state,
    }
    out = {
        "d" + n: r
        for n, x, r, want in zip(DIFFERENTIABLE, inputs, results, wanted)
        if want and x is not None
    }
    _carve.solve(readables(given), _pairs(family, scale, window), readables(out), True)
    return results


def _backward_cuda(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window,
    d_o, d_state, means, wanted,
):
    inputs = (q, k, v, g, beta, b, w, state, down, up)
    results = _empty_gradients(inputs, wanted)
    if d_o is None:
        d_o = q.new_zeros((*q.shape[:2], *v.shape[2:]))
    rows = {n: _native.rows(x) for n, x in _named(q, k, v, g, beta, b, w).items()}
    call = _native.call_of(family, rows, state, cu, scale, window, down, up)
    d_state = None if d_state is None else d_state.contiguous()
    _native.backward(
        call,
        q.device,
        _native.rows(d_o),
        d_state,
        means if means.numel() else None,
        {
            n: r
            for n, x, r, want in zip(DIFFERENTIABLE, inputs, results, wanted)
            if want and x is not None
        },
    )
    return results


def _backward_fake(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window,
    d_o, d_state, means, wanted,
):
    return _empty_gradients((q, k, v, g, beta, b, w, state, down, up), wanted)


def _decode_cpu(family, q, k, v, g, beta, b, w, state, scale):
    o = q.new_empty((*q.shape[:2], *v.shape[2:]))
    # The content gate is finished: what is left of family carve is gdn2's step
    # with one write gate a head.
    if family == "carve":
        family, w = "gdn2", w[..., None].expand(v.shape)
    inputs = {**_named(q, k, v, g, beta, b, w), "initial_state": state.clone()}
    _carve.solve(
        readables(inputs),
        _pairs(family, scale, 0),
        readables({"o": o, "final_state": state}),
        False,
    )
    return o


def _decode_cuda(family, q, k, v, g, beta, b, w, state, scale):
    o = q.new_empty((*q.shape[:2], *v.shape[2:]))
    inputs = {n: _native.rows(x) for n, x in _named(q, k, v, g, beta, b, w).items()}
    call = _native.call_of(family, inputs, None, None, scale, 0, None, None)
    _native.decode(call, q.device, o, state)
    return o


def _decode_fake(family, q, k, v, g, beta, b, w, state, scale):
    return q.new_empty((*q.shape[:2], *v.shape[2:]))


for _name in ("forward", "backward", "decode"):
    for _kind in ("CPU", "CUDA"):
        _library.impl(_name, globals()[f"_{_name}_{_kind.lower()}"], _kind)
    torch.library.register_fake(f"carve::{_name}", globals()[f"_{_name}_fake"])


def _keep(ctx, inputs, output):
    family, *tensors = inputs[:12]
    ctx.family, (ctx.scale, ctx.window, _) = family, inputs[12:]
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, d_o, d_state, _):
    *tensors, means = ctx.saved_tensors
    # family, then the inputs.
    wanted = list(ctx.needs_input_grad[1 : 1 + len(DIFFERENTIABLE)])
    none = (None,) * 4
    if d_o is None and d_state is None:
        return (None,) * (1 + len(DIFFERENTIABLE)) + none
    found = torch.ops.carve.backward.default(
        ctx.family, *tensors, ctx.scale, ctx.window, d_o, d_state, means, wanted
    )
    grads = [
        None if not want or x is None else d.to(x.dtype)
        for d, x, want in zip(found, tensors, wanted)
    ]
    return (None, *grads, *none)


torch.library.register_autograd(
    "carve::forward", _differentiate, setup_context=_keep, lib=_library
)


def _no_second_derivative(ctx, *_):
    raise NotImplementedError("carve::backward has no derivative of its own")


torch.library.register_autograd("carve::backward", _no_second_derivative, lib=_library)


def _is_plain(tensors) -> bool:
    """Would torch's dispatch do no more than call the kernel?  No gradient, no
    compilation, no subclass, mode or transform."""
    grad = torch.is_grad_enabled()
    for x in tensors:
        if isinstance(x, torch.Tensor) and (
            type(x) is not torch.Tensor or (grad and x.requires_grad)
        ):
            return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    )


_DIRECT = {
    ("forward", "cpu"): _forward_cpu,
    ("forward", "cuda"): _forward_cuda,
    ("decode", "cpu"): _decode_cpu,
    ("decode", "cuda"): _decode_cuda,
}


def call(name: str, *arguments):
    """torch.ops.carve.<name>, without dispatch where that changes nothing: it
    takes longer than all else that the host does."""
    direct = _DIRECT.get((name, arguments[1].device.type))
    if direct is not None and _is_plain(arguments):
        return direct(*arguments)
    return getattr(torch.ops.carve, name).default(*arguments)
