"""How do tensors of torch on a GPU reach carve_cuda.h?  By ctypes: a struct is
filled once for each kind of call (shapes, strides, types) and kept, so that a
call writes only its pointers."""

from __future__ import annotations

import ctypes
import functools
import pathlib
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p

import torch

_DTYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

#: Inputs with a head axis, in the order of the operators' arguments.
ROWS = ("q", "k", "v", "g", "beta", "b", "w")


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("batch", c_int64),
        ("token", c_int64),
        ("head", c_int64),
    ]


class _Problem(ctypes.Structure):
    _fields_ = [
        ("family", c_char_p),
        ("input", c_int),
        ("decay", c_int),
        *((n, c_int) for n in ("B", "T", "H", "HV", "K", "V", "N")),
        *((n, c_int) for n in ("window", "rank", "read_before", "general")),
        ("scale", c_float),
        *((n, _Tensor) for n in ("q", "k", "v", "g", "beta", "b", "e", "w")),
        *((n, c_void_p) for n in ("cu_seqlens", "initial_state")),
        *((n, c_void_p) for n in ("w_down", "w_up")),
    ]


class _Outputs(ctypes.Structure):
    _fields_ = [("o", _Tensor), ("final_state", c_void_p), ("window_means", c_void_p)]


class _Gradients(ctypes.Structure):
    _fields_ = [
        ("d_o", _Tensor),
        ("d_final_state", c_void_p),
        ("window_means", c_void_p),
        *((f"d{n}", _Tensor) for n in ("q", "k", "v", "g", "beta", "b", "e", "w")),
        *((n, c_void_p) for n in ("d_initial_state", "d_w_down", "d_w_up")),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The library beside the package."""
    folder = pathlib.Path(__file__).parents[1]
    lib = ctypes.CDLL(str(next(folder.glob("libcarve.so.*"))))
    lib.carve_last_error.restype = c_char_p
    lib.carve_cuda_kernel.restype = c_char_p
    lib.carve_cuda_kernel.argtypes = [POINTER(_Problem), c_int]
    for name, results in [("forward", _Outputs), ("backward", _Gradients)]:
        ask = getattr(lib, f"carve_cuda_{name}_workspace")
        ask.argtypes = [POINTER(_Problem), POINTER(c_size_t)]
        run = getattr(lib, f"carve_cuda_{name}")
        run.argtypes = [
            POINTER(_Problem),
            POINTER(results),
            c_void_p,
            c_size_t,
            c_void_p,
        ]
    lib.carve_cuda_decode.argtypes = [
        POINTER(_Problem),
        POINTER(_Tensor),
        c_void_p,
        c_void_p,
    ]
    return lib


def check(status: int) -> None:
    """Raises ValueError with the library's text, RuntimeError for a fault of
    the device."""
    if status:
        text = library().carve_last_error().decode()
        raise (ValueError if status == 1 else RuntimeError)(text)


def _strides(t: _Tensor, x: torch.Tensor) -> None:
    t.batch, t.token, t.head = x.stride()[:3]


def rows(x):
    """A tensor whose channels lie side by side, as the kernels read it."""
    if x is None or x.dim() < 4 or x.stride(-1) == 1 or x.shape[-1] == 1:
        return x
    return x.contiguous()


class _Call:
    """The structs of a kind of call."""

    def __init__(self, family, inputs, state, cu_seqlens, scale, window, w_down):
        q, v, g = inputs["q"], inputs["v"], inputs["g"]
        if q.dtype not in _DTYPES:
            raise ValueError(
                f"q: the CUDA kernels take float32, float16 or bfloat16, got {q.dtype}"
            )
        for name, x in inputs.items():
            if x is not None and name != "g" and x.dtype != q.dtype:
                raise ValueError(f"{name}: expected {q.dtype} like q, got {x.dtype}")
        p = self.problem = _Problem()
        p.family = family.encode()
        p.input = _DTYPES[q.dtype]
        p.decay = _DTYPES[torch.float32 if g is None else g.dtype]
        p.B, p.T, p.H, p.K = q.shape
        p.HV, p.V = v.shape[2:]
        p.N = p.B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        p.scale, p.window = scale, window
        p.rank = 0 if w_down is None else w_down.shape[1]
        for name, x in inputs.items():
            if x is not None:
                t = getattr(p, name)
                _strides(t, x)
                t.data = x.data_ptr()
        if state is not None:
            p.initial_state = state.data_ptr()
        if cu_seqlens is not None:
            p.cu_seqlens = cu_seqlens.data_ptr()
        if w_down is not None:
            p.w_down = p.w_up = w_down.data_ptr()
        self.places = [
            (getattr(p, name), name) for name in ROWS if inputs[name] is not None
        ]
        self.outputs = _Outputs()
        self.gradients = _Gradients()
        self.bytes = {}

    def workspace(self, name: str, device) -> torch.Tensor:
        """Room for a pass."""
        if name not in self.bytes:
            bytes_ = c_size_t()
            ask = getattr(library(), f"carve_cuda_{name}_workspace")
            check(ask(byref(self.problem), byref(bytes_)))
            self.bytes[name] = bytes_.value
        return torch.empty(self.bytes[name], dtype=torch.uint8, device=device)


_calls: dict = {}


def _key(x):
    return None if x is None else (x.dtype, x.shape, x.stride())


def call_of(family, inputs, state, cu_seqlens, scale, window, w_down, w_up) -> _Call:
    """The call's structs with its pointers."""
    n = None if cu_seqlens is None else cu_seqlens.shape[0]
    key = (
        family,
        *[_key(x) for x in inputs.values()],
        state is None,
        n,
        scale,
        window,
        None if w_down is None else w_down.shape,
        inputs["q"].device,
    )
    call = _calls.get(key)
    if call is None:
        call = _calls[key] = _Call(
            family, inputs, state, cu_seqlens, scale, window, w_down
        )
    p = call.problem
    for place, name in call.places:
        place.data = inputs[name].data_ptr()
    p.initial_state = None if state is None else state.data_ptr()
    p.cu_seqlens = None if cu_seqlens is None else cu_seqlens.data_ptr()
    p.w_down = None if w_down is None else w_down.data_ptr()
    p.w_up = None if w_up is None else w_up.data_ptr()
    return call


def forward(call, device, o, final_state, window_means) -> None:
    out = call.outputs
    _strides(out.o, o)
    out.o.data = o.data_ptr()
    out.final_state = None if final_state is None else final_state.data_ptr()
    out.window_means = None if window_means is None else window_means.data_ptr()
    room = call.workspace("forward", device)
    stream = torch.cuda.current_stream(device).cuda_stream
    check(
        library().carve_cuda_forward(
            byref(call.problem), byref(out), room.data_ptr(), room.numel(), stream
        )
    )


def backward(call, device, d_o, d_state, means, results) -> None:
    """`results`: gradients to be written, by the input's name."""
    out = call.gradients = _Gradients()
    _strides(out.d_o, d_o)
    out.d_o.data = d_o.data_ptr()
    out.d_final_state = None if d_state is None else d_state.data_ptr()
    out.window_means = None if means is None else means.data_ptr()
    for name, x in results.items():
        if name in ROWS:
            t = getattr(out, "d" + name)
            _strides(t, x)
            t.data = x.data_ptr()
        else:
            setattr(out, "d_" + name, x.data_ptr())
    room = call.workspace("backward", device)
    stream = torch.cuda.current_stream(device).cuda_stream
    check(
        library().carve_cuda_backward(
            byref(call.problem), byref(out), room.data_ptr(), room.numel(), stream
        )
    )


def decode(call, device, o, state) -> None:
    t = _Tensor(o.data_ptr(), *o.stride()[:3])
    stream = torch.cuda.current_stream(device).cuda_stream
    check(
        library().carve_cuda_decode(
            byref(call.problem), byref(t), state.data_ptr(), stream
        )
    )
