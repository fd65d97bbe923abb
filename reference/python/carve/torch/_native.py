"""How do tensors of torch on a GPU reach carve_cuda.h?  By ctypes: a struct is
filled once for each kind of call (shapes, strides, types) and kept, so that a
call writes only its pointers."""

from __future__ import annotations

import ctypes
import functools
import pathlib
import threading
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p

import torch

from .._arrays import tensors_of

_DTYPES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

#: Inputs with a head axis, in the order of the operators' arguments.
ROWS = ("q", "k", "v", "g", "beta", "b", "w")
#: All of floating point, in that order: what has a gradient.
INPUTS = (*ROWS, "initial_state", "w_down", "w_up")


#: Tensors of families that have no operator here.
_GENERAL = ("gd", "E", "p", "eta", "r", "y", "w_last")


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
        *((n, _Tensor) for n in _GENERAL),
        *((n, c_int) for n in ("substeps", "erase_order")),
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
        *((f"d{n}", _Tensor) for n in _GENERAL),
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


def _readable(x: torch.Tensor) -> bool:
    """Do the channels lie side by side, as the kernels read them?"""
    return x.dim() < 4 or x.stride(-1) == 1 or x.shape[-1] == 1


def _check_shapes(family, inputs: dict, cu_seqlens, size: dict) -> None:
    """Raises ValueError naming the tensor that the kernels would read beyond."""
    for name, row in tensors_of(family).items():
        x = inputs.get(name)
        if x is None or "axes" not in row:
            continue
        expected = tuple(size[axis] for axis in row["axes"])
        if tuple(x.shape) != expected:
            raise ValueError(
                f"{name}: expected shape [{','.join(row['axes'])}] = "
                f"{list(expected)}, got {list(x.shape)}"
            )
    if cu_seqlens is not None and cu_seqlens.dtype != torch.int64:
        raise ValueError(f"cu_seqlens: expected int64, got {cu_seqlens.dtype}")


class Call:
    """The structs of a kind of call, and what its results look like.

    `tensors` are those of INPUTS.  Raises ValueError naming a tensor that the
    kernels cannot read.
    """

    def __init__(self, family, tensors, cu_seqlens, scale, window):
        inputs = dict(zip(INPUTS, tensors))
        q, v, g, w_down = (inputs[n] for n in ("q", "v", "g", "w_down"))
        if q.dtype not in _DTYPES:
            raise ValueError(
                f"q: the CUDA kernels take float32, float16 or bfloat16, got {q.dtype}"
            )
        if q.dim() != 4 or v.dim() != 4:
            raise ValueError(
                f"q, v: expected four axes, got {list(q.shape)} and {list(v.shape)}"
            )
        of_type = {n: q.dtype for n in ROWS}
        of_type["g"] = torch.float32 if g is None else g.dtype
        for name, x in inputs.items():
            dtype = of_type.get(name, torch.float32)
            if x is not None and x.dtype != dtype:
                raise ValueError(f"{name}: expected {dtype}, got {x.dtype}")
        p = self.problem = _Problem()
        p.family = family.encode()
        p.input, p.decay = _DTYPES[q.dtype], _DTYPES[of_type["g"]]
        p.B, p.T, p.H, p.K = q.shape
        p.HV, p.V = v.shape[2:]
        p.N = p.B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        p.scale, p.window = scale, window
        p.rank = 0 if w_down is None else w_down.shape[1]
        size = {n: getattr(p, n) for n in ("B", "T", "H", "HV", "K", "V", "N")}
        _check_shapes(family, inputs, cu_seqlens, {**size, "rho": p.rank})
        #: Positions of the inputs that are copied first.
        self.copied = [
            i
            for i, x in enumerate(tensors)
            if x is not None
            and not (_readable(x) if INPUTS[i] in ROWS else x.is_contiguous())
        ]
        #: Where the address of each input goes: of rows into which struct.
        self.rows, self.whole = [], []
        for i, x in enumerate(tensors):
            if x is None:
                continue
            if INPUTS[i] in ROWS:
                t = getattr(p, INPUTS[i])
                _strides(t, x.contiguous() if i in self.copied else x)
                self.rows.append((i, t))
            else:
                self.whole.append((i, INPUTS[i]))
        self.o = p.B, p.T, p.HV, p.V
        self.outputs = _Outputs()
        o = self.outputs.o
        o.head, o.token, o.batch = p.V, p.HV * p.V, p.T * p.HV * p.V
        # Gradients lie without gaps.
        self.gradients = _Gradients()
        self.gradient_places = []
        for i, x in enumerate(tensors):
            if x is None:
                continue
            if INPUTS[i] in ROWS:
                t = getattr(self.gradients, "d" + INPUTS[i])
                t.head = x.shape[3] if x.dim() == 4 else 1
                t.token = x.shape[2] * t.head
                t.batch = x.shape[1] * t.token
                self.gradient_places.append((i, t, "data"))
            else:
                self.gradient_places.append((i, self.gradients, "d_" + INPUTS[i]))
        self.by_reference = byref(p)
        self.gradients_by_reference = byref(self.gradients)
        self.outputs_by_reference = byref(self.outputs)
        self._bytes = {}

    def workspace(self, name: str, q: torch.Tensor, stream: int) -> torch.Tensor:
        """Room for a pass; what is small is kept for the next on that stream,
        but in a graph, which has memory of its own."""
        bytes_ = self._bytes.get(name)
        if bytes_ is None:
            asked = c_size_t()
            ask = getattr(library(), f"carve_cuda_{name}_workspace")
            check(ask(self.by_reference, byref(asked)))
            bytes_ = self._bytes[name] = asked.value
        if bytes_ > _SMALL or torch._C._cuda_isCurrentStreamCapturing():
            return q.new_empty(bytes_, dtype=torch.uint8)
        kept = _of_thread.rooms
        room = kept.get((q.get_device(), stream))
        if room is None:
            room = q.new_empty(_SMALL, dtype=torch.uint8)
            kept[q.get_device(), stream] = room
        return room


#: Bytes of workspace that are kept.
_SMALL = 1 << 20


class _OfThread(threading.local):
    """Of each thread its own: a call is filled in while that of another runs."""

    def __init__(self):
        self.calls = {}
        self.rooms = {}


_of_thread = _OfThread()
#: Kinds of call to be remembered.
_MOST_CALLS = 4096


def call_of(family, tensors, cu_seqlens, scale, window):
    """The call's structs with the addresses of `tensors`, those of INPUTS, and
    what must live until it is launched."""
    key = (
        family,
        scale,
        window,
        None if cu_seqlens is None else (cu_seqlens.dtype, cu_seqlens.shape),
        tensors[0].get_device(),
        *[None if x is None else (x.dtype, x.shape, x.stride()) for x in tensors],
    )
    calls = _of_thread.calls
    call = calls.get(key)
    if call is None:
        if len(calls) >= _MOST_CALLS:
            calls.clear()
        call = calls[key] = Call(family, tensors, cu_seqlens, scale, window)
    alive = tensors
    if call.copied or cu_seqlens is not None:
        alive = list(tensors)
        for i in call.copied:
            alive[i] = tensors[i].contiguous()
    for i, place in call.rows:
        place.data = alive[i].data_ptr()
    p = call.problem
    for i, field in call.whole:
        setattr(p, field, alive[i].data_ptr())
    if cu_seqlens is not None:
        alive.append(cu_seqlens.contiguous())
        p.cu_seqlens = alive[-1].data_ptr()
    return call, alive


def _launch(name, call, q, results, at=None) -> None:
    """Calls a function of the library on the device and the stream of now; `at` is
    its third argument, or its workspace is."""
    device = q.get_device()
    if torch._C._cuda_getDevice() != device:
        with torch.cuda.device(device):
            return _launch(name, call, q, results, at)
    stream = torch._C._cuda_getCurrentRawStream(device)
    function = getattr(library(), "carve_cuda_" + name)
    if at is not None:
        status = function(call.by_reference, results, at, stream)
    else:
        room = call.workspace(name, q, stream)
        status = function(
            call.by_reference, results, room.data_ptr(), room.shape[0], stream
        )
    if status:
        check(status)


def forward(call, q, o, final_state, window_means) -> None:
    out = call.outputs
    out.o.data = o.data_ptr()
    out.final_state = None if final_state is None else final_state.data_ptr()
    out.window_means = None if window_means is None else window_means.data_ptr()
    _launch("forward", call, q, call.outputs_by_reference)


def backward(call, q, d_o, d_state, means, results) -> None:
    """`results`: for each of INPUTS the gradient to be written, or None."""
    if not _readable(d_o):
        d_o = d_o.contiguous()
    out = call.gradients
    _strides(out.d_o, d_o)
    out.d_o.data = d_o.data_ptr()
    out.d_final_state = None if d_state is None else d_state.data_ptr()
    out.window_means = None if means is None else means.data_ptr()
    for i, place, field in call.gradient_places:
        x = results[i]
        setattr(place, field, None if x is None else x.data_ptr())
    _launch("backward", call, q, call.gradients_by_reference)


def decode(call, q, o, state) -> None:
    out = call.outputs.o
    out.data = o.data_ptr()
    _launch("decode", call, q, byref(out), state.data_ptr())
