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
_library = torch.library.Library("carve", "DEF")
_library.define(
    f"forward(str family, {_INPUTS}, bool with_state) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"backward(str family, {_INPUTS}, Tensor? d_o, Tensor? d_final_state, "
    "Tensor? window_means, bool[] wanted) -> Tensor[]"
)
_library.define(
    "decode(str family, Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? beta, "
    "Tensor? b, Tensor? w, Tensor(a!) state, float scale) -> Tensor"
)


def _sequences(q, cu_seqlens) -> int:
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _state_dtype(q):
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _pairs(family, scale, window):
    settings = {"scale": scale, "precision": "double"}
    if family == "carve":
        settings["window"] = window
    return setting_pairs(family, settings)


def _solve_cpu(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window, with_state
):
    """o, the final state, and the means of the windows; None without."""
    B, T, _, K = q.shape
    HV, V = v.shape[2:]
    o, final = q.new_empty((B, T, HV, V)), None
    inputs = dict(
        zip(_native.INPUTS, (q, k, v, g, beta, b, w, state, down, up)), cu_seqlens=cu
    )
    out = {"o": o}
    if with_state:
        final = q.new_empty((_sequences(q, cu), HV, K, V), dtype=_state_dtype(q))
        out["final_state"] = final
    _carve.solve(readables(inputs), _pairs(family, scale, window), readables(out), False)
    return o, final, None


def _solve_cuda(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window, with_state,
    room=torch.Tensor.new_empty,
):
    tensors = (q, k, v, g, beta, b, w, state, down, up)
    call, _alive = _native.call_of(family, tensors, cu, scale, window)
    p = call.problem
    o, final, means = q.new_empty(call.o), None, None
    if with_state:
        final = q.new_empty((p.N, p.HV, p.K, p.V), dtype=torch.float32)
    if family == "carve":
        means = room(q, _means_shape(q, v, cu, window), dtype=torch.float32)
    _native.forward(call, q, o, final, means)
    return o, final, means


def _means_shape(q, v, cu_seqlens, window):
    slots = q.shape[0] * q.shape[1] // window + _sequences(q, cu_seqlens)
    return slots, *v.shape[2:]


def _forward_fake(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window, with_state
):
    B, T, _, K = q.shape
    HV, V = v.shape[2:]
    N = _sequences(q, cu)
    with_means = family == "carve" and q.is_cuda
    return (
        q.new_empty((B, T, HV, V)),
        q.new_empty((N, HV, K, V) if with_state else (0,), dtype=_state_dtype(q)),
        q.new_empty(
            _means_shape(q, v, cu, window) if with_means else (0,), dtype=torch.float32
        ),
    )


def _forward_cpu(*arguments):
    q = arguments[1]
    o, final, _ = _solve_cpu(*arguments)
    none = q.new_empty(0, dtype=torch.float32)
    return o, q.new_empty(0, dtype=_state_dtype(q)) if final is None else final, none


def _forward_cuda(*arguments):
    # Not all slots of the means are written, and what an operator returns must
    # not be chance.
    o, final, means = _solve_cuda(*arguments, room=torch.Tensor.new_zeros)
    absent = lambda: o.new_empty(0, dtype=torch.float32)
    return (
        o,
        absent() if final is None else final,
        absent() if means is None else means,
    )


def _rooms(inputs, wanted) -> list:
    """Room for the gradients asked for, that of g in float32 on a GPU; None for
    the others."""
    rooms = [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        if want and x is not None
        else None
        for x, want in zip(inputs, wanted)
    ]
    g = rooms[_G]
    if g is not None and g.is_cuda and g.dtype != torch.float32:
        rooms[_G] = torch.empty_like(g, dtype=torch.float32)
    return rooms


_G = _native.INPUTS.index("g")


def _solve_backward_cpu(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window,
    d_o, d_state, means, wanted,
):
    inputs = (q, k, v, g, beta, b, w, state, down, up)
    results = _rooms(inputs, wanted)
    given = dict(
        zip(_native.INPUTS, inputs), cu_seqlens=cu, do=d_o, dfinal_state=d_state
    )
    out = {"d" + n: x for n, x in zip(_native.INPUTS, results)}
    _carve.solve(readables(given), _pairs(family, scale, window), readables(out), True)
    return results


def _solve_backward_cuda(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window,
    d_o, d_state, means, wanted,
):
    inputs = (q, k, v, g, beta, b, w, state, down, up)
    call, _alive = _native.call_of(family, inputs, cu, scale, window)
    results = _rooms(inputs, wanted)
    if d_o is None:
        d_o = q.new_zeros(call.o)
    if d_state is not None:
        d_state = d_state.contiguous()
    if means is not None and not means.numel():
        means = None
    _native.backward(call, q, d_o, d_state, means, results)
    return results


def _with_empty(results, q) -> list:
    """An operator returns a tensor in any case."""
    return [q.new_empty((0,)) if x is None else x for x in results]


def _backward_cpu(*arguments):
    return _with_empty(_solve_backward_cpu(*arguments), arguments[1])


def _backward_cuda(*arguments):
    return _with_empty(_solve_backward_cuda(*arguments), arguments[1])


def _backward_fake(
    family, q, k, v, g, beta, b, w, state, down, up, cu, scale, window,
    d_o, d_state, means, wanted,
):
    return _with_empty(_rooms((q, k, v, g, beta, b, w, state, down, up), wanted), q)


def _decode_cpu(family, q, k, v, g, beta, b, w, state, scale):
    o = q.new_empty((*q.shape[:2], *v.shape[2:]))
    # The content gate is finished: what is left of family carve is gdn2's step
    # with one write gate a head.
    if family == "carve":
        family, w = "gdn2", w[..., None].expand(v.shape)
    inputs = dict(zip(_native.INPUTS, (q, k, v, g, beta, b, w, state.clone())))
    _carve.solve(
        readables(inputs),
        _pairs(family, scale, 0),
        readables({"o": o, "final_state": state}),
        False,
    )
    return o


def _decode_cuda(family, q, k, v, g, beta, b, w, state, scale):
    # The state takes part in no check of the call but this one.
    tensors = (q, k, v, g, beta, b, w, None, None, None)
    call, _alive = _native.call_of(family, tensors, None, scale, 0)
    p = call.problem
    if state.shape != (p.N, p.HV, p.K, p.V):
        raise ValueError(
            f"state: expected shape {[p.N, p.HV, p.K, p.V]}, got {list(state.shape)}"
        )
    o = q.new_empty(call.o)
    _native.decode(call, q, o, state)
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


_NONE_BEFORE, _NONE_AFTER = (None,), (None,) * 4


def _differentiate(ctx, d_o, d_state, _=None):
    *tensors, means = ctx.saved_tensors
    # family, then the inputs.
    wanted = list(ctx.needs_input_grad[1 : 1 + len(_native.INPUTS)])
    if d_o is None and d_state is None:
        return _NONE_BEFORE + (None,) * len(_native.INPUTS) + _NONE_AFTER
    found = call(
        "backward",
        ctx.family,
        *tensors,
        ctx.scale,
        ctx.window,
        d_o,
        d_state,
        means,
        wanted,
    )
    grads = [
        None if not want or x is None else d if d.dtype == x.dtype else d.to(x.dtype)
        for d, x, want in zip(found, tensors, wanted)
    ]
    return (*_NONE_BEFORE, *grads, *_NONE_AFTER)


torch.library.register_autograd(
    "carve::forward", _differentiate, setup_context=_keep, lib=_library
)


def _no_second_derivative(ctx, *_):
    raise NotImplementedError("carve::backward has no derivative of its own")


torch.library.register_autograd("carve::backward", _no_second_derivative, lib=_library)


class _Forward(torch.autograd.Function):
    """The operator's derivative without the operator: of that it takes a tenth
    of the time."""

    @staticmethod
    def forward(ctx, *arguments):
        o, final, means = _SOLVE[arguments[1].device.type](*arguments)
        ctx.family, ctx.scale, ctx.window = arguments[0], *arguments[12:14]
        ctx.save_for_backward(*arguments[1:12], means)
        ctx.set_materialize_grads(False)
        return o, final

    backward = staticmethod(_differentiate)


_SOLVE = {"cpu": _solve_cpu, "cuda": _solve_cuda}
_DIRECT = {
    ("backward", "cpu"): _solve_backward_cpu,
    ("backward", "cuda"): _solve_backward_cuda,
    ("decode", "cpu"): _decode_cpu,
    ("decode", "cuda"): _decode_cuda,
}


#: Where the tensors stand among the arguments: inputs, cotangents and means.
_TENSORS = {
    "forward": (slice(1, 12), slice(0)),
    "backward": (slice(1, 12), slice(14, 17)),
    "decode": (slice(1, 9), slice(0)),
}


_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def _is_plain() -> bool:
    """Would torch's dispatch do no more than to call the kernel and to note its
    derivative?  No compilation, no mode and no transform."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
    )


def call(name: str, *arguments):
    """torch.ops.carve.<name>, without dispatch where that changes nothing: it
    takes longer than all else that the host does.  Absent results may be None."""
    device = arguments[1].device.type
    inputs, cotangents = _TENSORS[name]
    plain, needs = device in _SOLVE and _is_plain(), False
    for x in arguments[inputs] + arguments[cotangents]:
        if x is not None:
            if type(x) not in _PLAIN_TYPES:
                plain = False
            elif x.requires_grad:
                needs = True
    if plain:
        needs = needs and torch.is_grad_enabled()
        if name == "forward":
            if not needs:
                return _SOLVE[device](*arguments)
            return *_Forward.apply(*arguments), None
        if not needs:
            return _DIRECT[name, device](*arguments)
    return getattr(torch.ops.carve, name).default(*arguments)
