"""Gated delta-rule attention as operators of torch, with FLA's signatures.

    from carve.torch import chunk_gated_delta_rule
    o, state = chunk_gated_delta_rule(q, k, v, g, beta)

Tensors are [B,T,H,D], a state is [N,HV,K,V], g is the natural log of the decay.
On a GPU the CUDA kernels run (where the library was built with them), on a CPU
the compiled reference.  `accelerate("fla")` or `accelerate("transformers")`
puts these functions where the models of those packages call their own, and
`restore()` takes them out.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from .._adapters import _FLA_IGNORED, _stands
from .._arrays import tensors_of
from . import _native, _operators  # noqa: F401  (registers the operators)

__all__ = [
    "accelerate",
    "chunk_carve",
    "chunk_delta_rule",
    "chunk_gated_delta_rule",
    "chunk_gdn2",
    "chunk_kda",
    "decode",
    "fused_recurrent_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gdn2",
    "fused_recurrent_kda",
    "kernel",
    "restore",
]


def _normalised(x):
    """x / sqrt(sum x^2 + 1e-6), computed in float32 at least."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * (wide.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def _activated_decay(g, A_log, dt_bias, lower_bound):
    """FLA's gate: from logits to the natural log of the decay, in float32."""
    wide = g if g.dtype == torch.float64 else g.float()
    by_head = (-1,) if g.dim() == 3 else (-1, 1)
    if dt_bias is not None:
        wide = wide + dt_bias.to(wide.dtype).view(g.shape[2:])
    rate = 1 if A_log is None else A_log.to(wide.dtype).exp().view(by_head)
    if lower_bound is not None:
        return lower_bound * torch.sigmoid(rate * wide)
    if A_log is None:
        raise ValueError("A_log: needed with use_gate_in_kernel")
    return -rate * F.softplus(wide)


def _as(x, dtype):
    """In that dtype; None is absent."""
    return x if x is None or x.dtype == dtype else x.to(dtype)


def _run(
    family,
    q,
    k,
    v,
    g=None,
    beta=None,
    b=None,
    w=None,
    w_down=None,
    w_up=None,
    window=0,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    state_v_first=False,
    use_gate_in_kernel=False,
    A_log=None,
    dt_bias=None,
    lower_bound=None,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    **others,
):
    for name, value in others.items():
        if name not in _FLA_IGNORED and _stands(value):
            raise ValueError(f"{name}: carve.torch has no such argument")
    if use_qk_l2norm_in_kernel:
        q, k = _normalised(q), _normalised(k)
    if use_gate_in_kernel:
        g = _activated_decay(g, A_log, dt_bias, lower_bound)
    if use_beta_sigmoid_in_kernel:
        beta = torch.sigmoid(beta) * (2 if allow_neg_eigval else 1)
    if q.is_cuda:
        # As the kernels read them.
        beta, b, w = (_as(x, q.dtype) for x in (beta, b, w))
        g, w_down, w_up = (_as(x, torch.float32) for x in (g, w_down, w_up))
        if cu_seqlens is not None:
            cu_seqlens = cu_seqlens.to(q.device, torch.int64)
    if initial_state is not None:
        if state_v_first:
            initial_state = initial_state.transpose(-1, -2)
        if q.is_cuda:
            initial_state = initial_state.float()
        initial_state = initial_state.contiguous()
    o, state, _ = _operators.call(
        "forward",
        family,
        q,
        k,
        v,
        g,
        beta,
        b,
        w,
        initial_state,
        w_down,
        w_up,
        cu_seqlens,
        q.shape[-1] ** -0.5 if scale is None else scale,
        window,
        output_final_state,
    )
    if not output_final_state:
        return o, None
    return o, state.transpose(-1, -2) if state_v_first else state


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, **arguments):
    """Gated DeltaNet; arguments as FLA's function of that name."""
    return _run("gdn", q, k, v, g=g, beta=beta, scale=scale, **arguments)


def chunk_kda(q, k, v, g, beta, scale=None, **arguments):
    """Kimi Delta Attention; arguments as FLA's function of that name."""
    return _run("kda", q, k, v, g=g, beta=beta, scale=scale, **arguments)


def chunk_gdn2(q, k, v, g, b, w, scale=None, **arguments):
    """Gated DeltaNet-2; arguments as FLA's function of that name."""
    return _run("gdn2", q, k, v, g=g, b=b, w=w, scale=scale, **arguments)


def chunk_delta_rule(q, k, v, beta, scale=None, **arguments):
    """DeltaNet; arguments as FLA's function of that name."""
    return _run("delta", q, k, v, beta=beta, scale=scale, **arguments)


def chunk_carve(q, k, v, g, b, w, w_down, w_up, window=64, scale=None, **arguments):
    """CARVE: b [B,T,HV,K] are the logits of the erase gate, w [B,T,HV] the write
    gate, w_down [HV,rank,V] and w_up [HV,K,rank] the content gate over windows
    of `window` tokens."""
    return _run(
        "carve",
        q,
        k,
        v,
        g=g,
        b=b,
        w=w,
        w_down=w_down,
        w_up=w_up,
        window=window,
        scale=scale,
        **arguments,
    )


def fused_recurrent_gated_delta_rule(
    q, k, v, g=None, gk=None, gv=None, beta=None, scale=None, **arguments
):
    """As `chunk_gated_delta_rule`, with FLA's arguments; gv is not there."""
    if gv is not None:
        raise ValueError("gv: the operators have no decay along the values")
    if g is not None and gk is not None:
        raise ValueError("gk: expected without g")
    if beta is None:
        beta = v.new_ones(v.shape[:3])
    family = "kda" if gk is not None else "delta" if g is None else "gdn"
    g = gk if gk is not None else g
    return _run(family, q, k, v, g=g, beta=beta, scale=scale, **arguments)


def fused_recurrent_delta_rule(q, k, v, beta=None, scale=None, **arguments):
    """As `chunk_delta_rule`."""
    if beta is None:
        beta = v.new_ones(v.shape[:3])
    return chunk_delta_rule(q, k, v, beta, scale, **arguments)


fused_recurrent_kda = chunk_kda
fused_recurrent_gdn2 = chunk_gdn2


def decode(family, q, k, v, state, *, g=None, beta=None, b=None, w=None, scale=None):
    """One token for each sequence: q, k [N,1,H,K], v [N,1,HV,V]; `state`
    [N,HV,K,V] is read and overwritten.  Returns o.  No gradients.

    For carve, b is the finished gate: the mean of the window is the caller's.
    """
    if q.shape[1] != 1:
        raise ValueError(f"q: expected one token, got {q.shape[1]}")
    if not state.is_contiguous() or state.dtype != _operators._state_dtype(q):
        raise ValueError(f"state: expected {_operators._state_dtype(q)} without gaps")
    if q.is_cuda:
        beta, b, w = (_as(x, q.dtype) for x in (beta, b, w))
        g = _as(g, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _operators.call(
        "decode", family, q, k, v, g, beta, b, w, state, scale
    )


def kernel(
    family,
    *,
    backward=False,
    dtype=torch.bfloat16,
    B=1,
    T=64,
    H=1,
    HV=None,
    K=128,
    V=128,
    window=64,
    rank=16,
):
    """Name of the CUDA kernel for a problem of these sizes; "none" without."""
    HV = HV or H
    sizes = {"B": B, "T": T, "H": H, "HV": HV, "K": K, "V": V, "rho": rank}
    axes = {n: row["axes"] for n, row in tensors_of(family).items() if "axes" in row}

    def make(name, dtype):
        if name not in axes:
            return None
        return torch.empty([sizes[a] for a in axes[name]], dtype=dtype, device="cuda")

    wide = ("g", "w_down", "w_up")
    tensors = [
        None
        if n == "initial_state"
        else make(n, torch.float32 if n in wide else dtype)
        for n in _native.INPUTS
    ]
    call, _ = _native.call_of(family, tensors, None, 1.0, window)
    return _native.library().carve_cuda_kernel(call.problem, int(backward)).decode()


# accelerate

def _of_transformers(function):
    def called(query, key, value, g, beta, chunk_size=64, **arguments):
        return function(query, key, value, g, beta, **arguments)

    return called


#: Package -> name there -> what takes its place.
_PLACES = {
    "fla": {
        f.__name__ if name is None else name: f
        for name, f in [
            (None, chunk_gated_delta_rule),
            (None, chunk_kda),
            (None, chunk_gdn2),
            (None, chunk_delta_rule),
            (None, fused_recurrent_gated_delta_rule),
            (None, fused_recurrent_delta_rule),
            ("fused_recurrent_kda", chunk_kda),
            ("fused_recurrent_gdn2", chunk_gdn2),
        ]
    },
    "transformers": {
        "torch_chunk_gated_delta_rule": _of_transformers(chunk_gated_delta_rule),
        "torch_recurrent_gated_delta_rule": _of_transformers(chunk_gated_delta_rule),
    },
}
_replaced: list = []


def accelerate(package: str) -> int:
    """Puts these functions where the loaded modules of a package ("fla" or
    "transformers") hold its own; returns in how many places.  Modules that are
    imported later see theirs: import the model first.

    Raises ValueError where there is no such place.
    """
    if package not in _PLACES:
        raise ValueError(
            f"package: expected one of {', '.join(_PLACES)}, got {package!r}"
        )
    if any(of == package for of, *_ in _replaced):
        return 0
    count = 0
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != package or module is None:
            continue
        for name, ours in _PLACES[package].items():
            theirs = vars(module).get(name)
            # A submodule may have a function's name.
            if callable(theirs):
                setattr(module, name, ours)
                _replaced.append((package, module, name, theirs))
                count += 1
    if not count:
        raise ValueError(f"package: no module of {package} with such functions is loaded")
    return count


def restore() -> None:
    """Puts back all that `accelerate` replaced."""
    while _replaced:
        _, module, name, theirs = _replaced.pop()
        setattr(module, name, theirs)
