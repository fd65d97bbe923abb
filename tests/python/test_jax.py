"""Arrays of jax: bfloat16 and 8-bit floats too."""

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
