"""Arrays of jax: bfloat16 and 8-bit floats too, gradients by its vjp."""

import subprocess

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

import carve


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_arrays_of_jax(dtype):
    random = np.random.default_rng(0)
    x = {n: jnp.asarray(random.standard_normal((1, 9, 2, 8)), dtype) for n in "qkv"}
    wide = {n: np.asarray(a).astype(np.float64) for n, a in x.items()}
    exact = carve.reference("linear", **x)
    assert np.array_equal(exact["o"], carve.reference("linear", **wide)["o"])
    report = carve.verify("linear", x, {"o": jnp.asarray(exact["o"], dtype)})
    assert report.passed, str(report)


def test_8_bit_arrays_are_read():
    x = {n: jnp.ones((1, 3, 1, 2), "float32") for n in "qkv"}
    x["initial_state"] = jnp.ones((1, 1, 2, 2), "float8_e5m2") * 3
    wide = {**x, "initial_state": x["initial_state"].astype("float32")}
    exact = carve.reference("linear", **x)
    assert np.array_equal(exact["o"], carve.reference("linear", **wide)["o"])


def loop(q, k, v, g, beta, initial_state=None):
    """The gated delta rule as a program for jax would do it."""
    B, _, H, K = q.shape
    HV, V = v.shape[2:]
    S = jnp.zeros((B, HV, K, V), q.dtype) if initial_state is None else initial_state
    q, k = (jnp.repeat(x, HV // H, axis=2) for x in (q, k))

    def step(S, x):
        q, k, v, g, beta = x
        S = S * jnp.exp(g)[..., None, None]
        write = beta[..., None] * (v - jnp.einsum("bhk,bhkv->bhv", k, S))
        S = S + k[..., None] * write[..., None, :]
        return S, jnp.einsum("bhk,bhkv->bhv", q, S) * K**-0.5

    of_tokens = [jnp.moveaxis(x, 1, 0) for x in (q, k, v, g, beta)]
    S, o = jax.lax.scan(step, S, of_tokens)
    return jnp.moveaxis(o, 0, 1), S


def test_a_function_conforms_with_its_gradients():
    score = carve.assert_conforms(loop, "gdn", arrays="jax", only={"length": ["16", "32"]})
    judged = {t["name"] for v in score.vectors.values() for t in v["tensors"]}
    assert {"o", "dq", "dk", "dv", "dg", "dbeta", "dinitial_state"} <= judged
    assert not any(v["absent"] for v in score.vectors.values())


def test_a_wrong_gradient_is_found():
    @jax.custom_vjp
    def halved(x):
        return x

    halved.defvjp(lambda x: (x, None), lambda _, d: (d / 2,))

    def wrong(q, k, v, g, beta):
        return loop(q, k, v, g, halved(beta))

    only = {"length": ["16", "32"]}
    with pytest.raises(AssertionError, match=": dbeta: RMS error"):
        carve.assert_conforms(wrong, "gdn", arrays="jax", only=only)
    carve.assert_conforms(wrong, "gdn", arrays="jax", only=only, backward=False)


def test_capture_writes_the_backward_pass(tmp_path):
    path = tmp_path / "call.safetensors"
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), "float32")
    x = {n: draw(1, 64, 2, 8) / 2 for n in "qkv"}
    x["g"], x["beta"] = -abs(draw(1, 64, 2)), jax.nn.sigmoid(draw(1, 64, 2))

    def named(q, k, v, log_decay, **others):
        return loop(q, k, v, log_decay, **others)

    watched = carve.capture(named, family="gdn", file=path, names={"log_decay": "g"})
    o, state = watched(
        x["q"], x["k"], x["v"], x["g"], beta=x["beta"], initial_state=draw(1, 2, 8, 8)
    )
    assert isinstance(o, jax.Array) and state.shape == (1, 2, 8, 8)
    said = subprocess.run(["carve", "verify", path], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    for name in ("do", "dfinal_state"):
        assert name not in said.stdout.split()  # given, not judged
    for name in ("o", "final_state", "dq", "dk", "dv", "dg", "dbeta", "dinitial_state"):
        assert name in said.stdout.split(), name


def test_a_wrong_gradient_is_in_the_dump(tmp_path):
    @jax.custom_vjp
    def halved(x):
        return x

    halved.defvjp(lambda x: (x, None), lambda _, d: (d / 2,))
    x = {n: jnp.ones((1, 9, 1, 2)) / 2 for n in "qkv"}
    x |= {"g": -jnp.ones((1, 9, 1)), "beta": jnp.ones((1, 9, 1)) / 2}

    def wrong(q, k, v, g, beta):
        return loop(q, k, v, g, halved(beta))

    path = tmp_path / "call.safetensors"
    carve.capture(wrong, family="gdn", file=path)(**x)
    verdict = lambda: subprocess.run(["carve", "verify", path], capture_output=True)
    assert verdict().returncode == 1
    carve.capture(wrong, family="gdn", file=path, backward=False)(**x)
    assert verdict().returncode == 0


def test_what_is_traced_cannot_be_captured(tmp_path):
    path = tmp_path / "call.safetensors"
    x = {n: jnp.ones((1, 3, 1, 2)) for n in "qkv"}
    x |= {"g": -jnp.ones((1, 3, 1)), "beta": jnp.ones((1, 3, 1))}
    watched = carve.capture(loop, family="gdn", file=path)
    with pytest.raises(ValueError, match="q: expected an array, got what jax traces"):
        jax.jit(lambda x: watched(**x))(x)
    assert not path.exists()
