"""Arrays of jax: bfloat16 and 8-bit floats too."""

import numpy as np
import pytest

jnp = pytest.importorskip("jax.numpy")

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
