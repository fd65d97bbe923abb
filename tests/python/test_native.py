"""Does what torch has reach the C interface of the CUDA kernels?  Without a GPU:
functions of Python stand for the library, tensors on a CPU for those on a GPU."""

import ctypes
import pathlib
import re

import pytest

torch = pytest.importorskip("torch")

import families
from carve.torch import _native, _operators
from families import FAMILIES


class Library:
    """Reads what it is given through the pointers, and writes ones."""

    def __init__(self):
        self.seen, self.rooms = {}, []

    def _read(self, t, size, dtype):
        """A row tensor by its address and strides."""
        shape, strides = size, (t.batch, t.token, t.head, 1)
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides))
        flat = self._at(t.data, span, dtype)
        return flat.as_strided(shape, strides[: len(shape)]).clone()

    def _at(self, address, count, dtype):
        width = torch.empty((), dtype=dtype).element_size()
        memory = (ctypes.c_uint8 * (count * width)).from_address(address)
        return torch.frombuffer(memory, dtype=dtype)

    def carve_cuda_forward_workspace(self, problem, bytes_):
        bytes_._obj.value = 1000
        return 0

    def carve_cuda_backward_workspace(self, problem, bytes_):
        bytes_._obj.value = _native._SMALL + 1
        return 0

    def carve_cuda_forward(self, problem, outputs, room, bytes_, stream):
        p, out = problem._obj, outputs._obj
        self.rooms.append((room, bytes_))
        for name, shape, dtype in self.expected:
            if name in _native.ROWS:
                self.seen[name] = self._read(getattr(p, name), shape, dtype)
            else:
                count = torch.Size(shape).numel()
                at = getattr(p, name)
                self.seen[name] = self._at(at, count, dtype).view(shape).clone()
        self.sizes = p.B, p.T, p.H, p.HV, p.K, p.V, p.N, p.window, p.rank
        self._at(out.o.data, p.B * p.T * p.HV * p.V, torch.bfloat16).fill_(1)
        if out.final_state:
            self._at(out.final_state, p.N * p.HV * p.K * p.V, torch.float32).fill_(2)
        return 0

    def carve_cuda_backward(self, problem, results, room, bytes_, stream):
        p, out = problem._obj, results._obj
        self.rooms.append((room, bytes_))
        self.d_o = self._read(out.d_o, (p.B, p.T, p.HV, p.V), torch.bfloat16)
        self.asked = set()
        for i, name in enumerate(_native.INPUTS):
            row = name in _native.ROWS
            at = getattr(out, ("d" if row else "d_") + name)
            at = at.data if row else at
            if at:
                self.asked.add(name)
                shape, dtype = {n: (s, d) for n, s, d in self.expected}[name]
                self._at(at, torch.Size(shape).numel(), dtype).fill_(i)
        return 0


@pytest.fixture
def library(monkeypatch):
    made = Library()
    monkeypatch.setattr(_native, "library", lambda: made)
    monkeypatch.setattr(_native, "_of_thread", _native._OfThread())
    for name, value in [
        ("_cuda_getDevice", lambda: -1),
        ("_cuda_getCurrentRawStream", lambda device: 7),
        ("_cuda_isCurrentStreamCapturing", lambda: False),
    ]:
        monkeypatch.setattr(torch._C, name, value, raising=False)
    return made


def tensors(family):
    """Inputs with strides that no row-major tensor has, those of q with channels
    apart."""
    x = families.inputs(
        family, torch.bfloat16, B=2, T=5, H=2, HV=4, K=8, V=16, rank=3, state=True
    )
    x = {n: a.detach() for n, a in x.items()}
    x["q"] = x["q"].transpose(-1, -2).contiguous().transpose(-1, -2)
    x["v"] = x["v"].transpose(1, 2).contiguous().transpose(1, 2)
    x["initial_state"] = x["initial_state"].transpose(2, 3).contiguous().transpose(2, 3)
    return x


def arguments(family, x):
    rows = [x.get(n) for n in _native.INPUTS]
    return (family, *rows, None, 0.5, 4 if family == "carve" else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_read_the_tensors(family, library):
    x = tensors(family)
    library.expected = [(n, tuple(a.shape), a.dtype) for n, a in x.items()]
    for _ in range(2):  # the second one finds the structs
        o, state, means = _operators._solve_cuda(*arguments(family, x), True)
        assert set(library.seen) == set(x)
        for n, a in x.items():
            assert torch.equal(library.seen[n], a), n
        assert (o == 1).all() and (state == 2).all()
        assert o.shape == x["v"].shape and state.shape == x["initial_state"].shape
        assert (means is not None) == (family == "carve")
        x = {n: a + 1 for n, a in x.items()}
    assert library.sizes[:7] == (2, 5, 2, 4, 8, 16, 2)
    # One small room for all calls, of at least what was asked for.
    (room,) = set(library.rooms)
    assert room[1] >= 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_write_the_gradients(family, library):
    x = tensors(family)
    library.expected = [(n, tuple(a.shape), a.dtype) for n, a in x.items()]
    names = [n for n in _native.INPUTS if n in x and n != "k"]
    wanted = [n in names for n in _native.INPUTS]
    d_o = torch.randn(2, 4, 5, 16).bfloat16().transpose(1, 2)
    found = _operators._solve_backward_cuda(
        *arguments(family, x), d_o, None, None, wanted
    )
    assert library.asked == set(names)
    assert torch.equal(library.d_o, d_o)
    for i, (n, d) in enumerate(zip(_native.INPUTS, found)):
        assert (d is not None) == (n in names)
        if d is not None:
            assert d.shape == x[n].shape and (d == i).all(), n
    assert library.rooms[0][1] == _native._SMALL + 1


def test_what_the_kernels_would_read_beyond_is_refused(library):
    x = tensors("gdn")
    cases = [
        ("k", x["k"][:, :4], r"k: expected shape \[B,T,H,K\] = \[2, 5, 2, 8\], got \[2, 4"),
        ("g", x["g"][..., None], r"g: expected shape \[B,T,HV\]"),
        ("beta", x["beta"].float(), "beta: expected torch.bfloat16, got torch.float32"),
        ("initial_state", x["initial_state"][:1], r"initial_state: expected shape \[N,HV"),
        ("initial_state", x["initial_state"].half(), "initial_state: expected torch.float32"),
        ("q", x["q"].double(), "q: the CUDA kernels take float32, float16 or bfloat16"),
        ("v", x["v"][0], "q, v: expected four axes"),
    ]
    for name, wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            _operators._solve_cuda(*arguments("gdn", {**x, name: wrong}), False)
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    rows = [x.get(n) for n in _native.INPUTS]
    with pytest.raises(ValueError, match="cu_seqlens: expected int64"):
        _operators._solve_cuda("gdn", *rows[:7], None, None, None, offsets, 0.5, 0, False)
    one = [None if r is None else r[:, :1] for r in rows[:7]]
    with pytest.raises(ValueError, match=r"state: expected shape \[2, 4, 8, 16\]"):
        _operators._decode_cuda("gdn", *one, torch.zeros(2, 4, 16, 8), 0.5)


def test_a_status_is_an_error(library):
    x = tensors("gdn")
    library.carve_cuda_forward = lambda *_: 1
    library.carve_last_error = lambda: b"q: null pointer"
    with pytest.raises(ValueError, match="q: null pointer"):
        _operators._solve_cuda(*arguments("gdn", x), False)
    library.carve_cuda_forward = lambda *_: 2
    with pytest.raises(RuntimeError, match="q: null pointer"):
        _operators._solve_cuda(*arguments("gdn", x), False)


def test_threads_have_structs_of_their_own(library):
    import threading

    x = tensors("gdn")
    rows = [x.get(n) for n in _native.INPUTS]
    calls = [_native.call_of("gdn", rows, None, 0.5, 0)[0] for _ in range(2)]
    assert calls[0] is calls[1]
    thread = threading.Thread(
        target=lambda: calls.append(_native.call_of("gdn", rows, None, 0.5, 0)[0])
    )
    thread.start()
    thread.join()
    assert calls[2] is not calls[0]


def test_the_structs_are_those_of_the_header():
    """Field by field: a struct that is too short is read beyond its end."""
    header = pathlib.Path(__file__).parents[2] / "include/carve/carve_cuda.h"
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
    kinds = {
        "carve_cuda_tensor": _native._Tensor,
        "int": ctypes.c_int,
        "int64_t": ctypes.c_int64,
        "float": ctypes.c_float,
        "carve_dtype": ctypes.c_int,
        "carve_cuda_erase_order": ctypes.c_int,
    }
    for name, struct in [
        ("tensor", _native._Tensor),
        ("problem", _native._Problem),
        ("outputs", _native._Outputs),
        ("gradients", _native._Gradients),
    ]:
        (body,) = re.findall(
            rf"typedef struct carve_cuda_{name} {{(.*?)}} carve_cuda_{name};", text, re.S
        )
        declared = []
        for line in body.split(";")[:-1]:
            words = line.replace("*", " * ").split()
            kind = ctypes.c_void_p if "*" in words else kinds[words[-2]]
            declared.append((words[-1], kind))
        ours = [
            (n, ctypes.c_void_p if t is ctypes.c_char_p else t)
            for n, t in struct._fields_
        ]
        assert ours == declared, name


def test_the_library_of_the_package():
    """The real one: beside the package, with or without the kernels."""
    _native.library.cache_clear()
    lib = _native.library()
    import carve

    assert lib._name.startswith(carve.__path__[0])
    assert lib.carve_cuda_built() in (0, 1)
