"""Tensors of torch: read where they are, gradients through its autograd."""

import subprocess

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import carve


def loop(q, k, v, g, beta, initial_state=None):
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    S = q.new_zeros(B, HV, K, V) if initial_state is None else initial_state
    q, k = (x.repeat_interleave(HV // H, 2) for x in (q, k))
    o = []
    for t in range(T):
        S = S * g[:, t].exp()[..., None, None]
        seen = torch.einsum("bhk,bhkv->bhv", k[:, t], S)
        write = beta[:, t][..., None] * (v[:, t] - seen)
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], write)
        o.append(torch.einsum("bhk,bhkv->bhv", q[:, t], S) * K**-0.5)
    return torch.stack(o, 1), S


def test_a_function_conforms_with_its_gradients():
    score = carve.assert_conforms(loop, "gdn", arrays="torch")
    judged = {t["name"] for v in score.vectors.values() for t in v["tensors"]}
    assert {"o", "final_state", "dq", "dk", "dv", "dg", "dbeta"} <= judged
    assert "dinitial_state" in judged
    assert not any(v["absent"] for v in score.vectors.values())


def test_a_wrong_gradient_is_found():
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, d):
            return d / 2

    def wrong(q, k, v, g, beta, initial_state=None):
        return loop(q, k, v, g, Halved.apply(beta), initial_state)

    with pytest.raises(AssertionError, match=": dbeta: RMS error"):
        carve.assert_conforms(wrong, "gdn", arrays="torch")
    carve.assert_conforms(wrong, "gdn", arrays="torch", backward=False)


def test_capture_writes_the_backward_pass(tmp_path):
    path = tmp_path / "call.safetensors"
    torch.manual_seed(0)
    x = {n: torch.randn(1, 64, 2, 8, requires_grad=True) for n in "qkv"}
    x["g"] = -torch.rand(1, 64, 2)
    x["beta"] = torch.rand(1, 64, 2, requires_grad=True)
    o, _ = carve.capture(loop, family="gdn", file=path)(**x)
    o.sum().backward()  # the caller's own graph is still there
    assert x["q"].grad is not None
    said = subprocess.run(["carve", "verify", path], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "dbeta" in said.stdout and "dg " not in said.stdout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_tensors(dtype):
    torch.manual_seed(0)
    x = {n: torch.randn(1, 9, 2, 8).to(dtype) for n in "qkv"}
    wide = {n: a.double() for n, a in x.items()}
    exact = carve.reference("linear", **x)
    assert np.array_equal(exact["o"], carve.reference("linear", **wide)["o"])
    report = carve.verify("linear", x, {"o": torch.tensor(exact["o"]).to(dtype)})
    assert report.passed, str(report)


def test_8_bit_tensors_are_read():
    x = {n: torch.randn(1, 9, 2, 8) for n in "qkv"}
    x["initial_state"] = torch.randn(1, 2, 8, 8).to(torch.float8_e4m3fn)
    wide = {**x, "initial_state": x["initial_state"].double()}
    exact = carve.reference("linear", **x)
    assert np.array_equal(exact["o"], carve.reference("linear", **wide)["o"])
