"""Does `carve.capture` know what a package's entry points mean?  Each is
called, in the package itself where that runs on a CPU, with what its arguments
can say: grouped heads, a start state that is not symmetric, K unlike V, logits
in place of gates.  The dump must pass `carve verify`."""

import functools
import importlib
import inspect
import subprocess

import numpy as np
import pytest

import carve
from carve import _adapters

B, T, H, HV, K, V = 1, 37, 2, 4, 16, 8


def verdict(path):
    said = subprocess.run(
        ["carve", "verify", str(path)], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def numbers(seed=0, H=H, HV=HV, V=V):
    """Float32 inputs of any family: unit keys, log decays, gates; and logits."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    gate = lambda *shape: random.uniform(0, 1, shape).astype(np.float32)
    return {
        "q": unit(normal(B, T, H, K)),
        "k": unit(normal(B, T, H, K)),
        "v": normal(B, T, HV, V),
        "g": -gate(B, T, HV),
        "gk": -gate(B, T, HV, K),
        "gv": -gate(B, T, HV, V),
        "beta": gate(B, T, HV),
        "b": gate(B, T, HV, K),
        "w": gate(B, T, HV, V),
        "initial_state": normal(B, HV, K, V),
        "A_log": 0.1 * normal(HV),
        "dt_bias": normal(HV),
        "dt_bias_k": normal(HV * K),
        "logits": normal(B, T, HV),
        "logits_k": normal(B, T, HV, K),
    }


# A package's function, and calls of it.

def tensors(names, grad=True, **how):
    torch = pytest.importorskip("torch")
    x = {n: torch.tensor(a) for n, a in numbers(**how).items()}
    x = {n.split("=")[0]: x[n.split("=")[-1]].clone() for n in names.split()}
    if grad:
        for a in x.values():
            a.requires_grad_()
    return x


def fla(name):
    """A function of FLA, from its submodules."""
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="FLA needs triton")
    pytest.importorskip("fla", reason="fla-core is not installed")
    ops = importlib.import_module(
        "fla.ops."
        + (
            "gdn2"
            if "gdn2" in name
            else "kda"
            if "kda" in name
            else "gated_delta_rule"
            if "gated" in name
            else "delta_rule"
        )
    )
    if hasattr(ops, name):
        return getattr(ops, name)
    return getattr(importlib.import_module(ops.__name__ + ".naive"), name)


GATED = "q k v initial_state"
CALLS = [
    ("fused_recurrent_gated_delta_rule", GATED + " g beta", {"scale": 0.3}),
    ("fused_recurrent_gated_delta_rule", GATED + " gk", {}),
    ("fused_recurrent_gated_delta_rule", GATED + " g gv beta", {}),
    ("fused_recurrent_gated_delta_rule", "q k v", {}),
    (
        "fused_recurrent_gated_delta_rule",
        "q k v g=logits A_log dt_bias beta=logits",
        {
            "use_gate_in_kernel": True,
            "use_beta_sigmoid_in_kernel": True,
            "allow_neg_eigval": True,
            "use_qk_l2norm_in_kernel": True,
        },
    ),
    ("fused_recurrent_kda", GATED + " g=gk beta", {"scale": 0.3}),
    (
        "fused_recurrent_kda",
        "q k v g=logits_k beta=logits A_log dt_bias=dt_bias_k",
        {"use_gate_in_kernel": True, "use_beta_sigmoid_in_kernel": True},
    ),
    (
        "fused_recurrent_kda",
        "q k v g=logits_k beta A_log dt_bias=dt_bias_k",
        {"use_gate_in_kernel": True, "lower_bound": -4.0},
    ),
    ("fused_recurrent_gdn2", GATED + " g=gk b w", {"scale": 0.3}),
    (
        "fused_recurrent_gdn2",
        "q k v g=logits_k b w A_log dt_bias=dt_bias_k",
        {"use_gate_in_kernel": True, "use_qk_l2norm_in_kernel": True},
    ),
]


@pytest.mark.parametrize("name, names, arguments", CALLS)
def test_fla(name, names, arguments, tmp_path):
    fn = fla(name)
    path = tmp_path / "call.safetensors"
    watched = carve.capture(fn, file=path)
    # Where FLA makes beta itself, it has as many heads as q.
    how = {} if "beta" in names or "b w" in names else {"H": HV}
    o, state = watched(
        **tensors(names, grad=False, **how), output_final_state=True, **arguments
    )
    assert state is not None and "final_state" in verdict(path)


def test_fla_packed_and_transposed(tmp_path):
    torch = pytest.importorskip("torch")
    x = tensors(GATED + " g beta", grad=False)
    x["initial_state"] = torch.cat([x["initial_state"], -x["initial_state"]])
    x["initial_state"] = x["initial_state"].transpose(-1, -2).contiguous()
    path = tmp_path / "call.safetensors"
    watched = carve.capture(fla("fused_recurrent_gated_delta_rule"), file=path)
    _, state = watched(
        **x,
        state_v_first=True,
        output_final_state=True,
        cu_seqlens=torch.tensor([0, 12, T]),
    )
    assert state.shape == (2, HV, V, K)
    verdict(path)


def test_fla_delta_rule(tmp_path):
    # One head for each value head there.
    path = tmp_path / "call.safetensors"
    watched = carve.capture(fla("fused_recurrent_delta_rule"), file=path)
    watched(
        **tensors("q k v beta initial_state", grad=False, H=HV),
        output_final_state=True,
    )
    assert "DeltaNet" in verdict(path)


NAIVE = [
    ("naive_recurrent_gated_delta_rule", GATED + " g beta"),
    ("naive_chunk_gated_delta_rule", GATED + " g beta"),
    ("naive_recurrent_kda", GATED + " g=gk beta"),
    ("naive_chunk_kda", GATED + " g=gk beta"),
    ("naive_recurrent_gdn2", GATED + " g=gk b w"),
    ("naive_chunk_gdn2", GATED + " g=gk b w"),
]


@pytest.mark.parametrize("name, names", NAIVE)
def test_fla_in_torch_with_gradients(name, names, tmp_path):
    path = tmp_path / "call.safetensors"
    x = tensors(names, H=HV)
    if "chunk" in name:  # whole chunks there
        x = {
            n: a if n == "initial_state" else a.detach()[:, :32].requires_grad_()
            for n, a in x.items()
        }
        more = {"chunk_size": 16}
    else:
        more = {}
    watched = carve.capture(fla(name), file=path)
    watched(**x, output_final_state=True, **more)
    table = verdict(path)
    for n in x:
        assert f"d{n} " in table


def test_fla_heads_first(tmp_path):
    path = tmp_path / "call.safetensors"
    x = tensors("q k v beta", H=HV)
    x = {n: a.detach().transpose(1, 2).requires_grad_() for n, a in x.items()}
    carve.capture(fla("delta_rule_recurrence"), file=path)(**x)
    assert "dbeta" in verdict(path)


@pytest.mark.parametrize(
    "chunked, twin, names, arguments",
    [
        (name.replace("fused_recurrent", "chunk"), name, names, arguments)
        for name, names, arguments in CALLS
        if "g" in [n.split("=")[0] for n in names.split()] and "gv" not in names
    ],
)
def test_fla_chunked(chunked, twin, names, arguments, tmp_path):
    """The chunked kernels need a GPU.  Without one their signatures are read
    and their recurrent twins answer."""
    torch = pytest.importorskip("torch")
    fn, twin = fla(chunked), fla(twin)
    if not torch.cuda.is_available():
        real = inspect.signature(fn)

        @functools.wraps(fn)
        def called(*args, **kwargs):
            bound = real.bind(*args, **kwargs).arguments
            bound.update(bound.pop("kwargs", {}))
            return twin(**bound)
    else:
        called = fn
    path = tmp_path / "call.safetensors"
    watched = carve.capture(called, file=path)
    watched(**tensors(names, grad=False), output_final_state=True, **arguments)
    verdict(path)


def test_what_a_dump_cannot_express_is_refused(tmp_path):
    path = tmp_path / "call.safetensors"
    watched = carve.capture(fla("chunk_gated_delta_rule"), file=path)
    with pytest.raises(ValueError, match="cp_context: a dump cannot say"):
        watched(**tensors("q k v g beta", grad=False), cp_context=object())
    assert not path.exists()
    watched = carve.capture(fla("fused_recurrent_gated_delta_rule"), file=path)
    with pytest.raises(ValueError, match="gk: a dump has one decay"):
        watched(**tensors("q k v g gk beta", grad=False))


@pytest.mark.parametrize("kind", ["chunk", "recurrent"])
@pytest.mark.parametrize("norm", [False, True])
def test_transformers(kind, norm, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="transformers is not installed")
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    # Where FLA can be imported, the name leads there.
    fn = inspect.unwrap(getattr(qwen, f"torch_{kind}_gated_delta_rule"))
    path = tmp_path / "call.safetensors"
    x = tensors("query=q key=k value=v g beta initial_state")
    watched = carve.capture(fn, file=path)
    watched(**x, output_final_state=True, use_qk_l2norm_in_kernel=norm)
    table = verdict(path)
    for n in "qkvg":
        assert f"d{n} " in table


@pytest.mark.parametrize(
    "rule, gates",
    [
        ("linear", ""),
        ("gated", "g"),
        ("gated", "gk"),
        ("delta", "beta"),
        ("gated_delta", "g beta"),
        ("gated_delta", "gk beta"),
    ],
)
@pytest.mark.parametrize("queries", [2, 4])
def test_onnx(rule, gates, queries, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    operator = pytest.importorskip("onnx.reference.ops.op_linear_attention")
    x = numbers(H=queries, HV=2)
    x["k"] = x["k"][:, :, :2]
    flat = lambda a: a.reshape(B, T, -1)
    decay = [flat(x[g]) for g in gates.split() if g != "beta"]
    path = tmp_path / "call.safetensors"
    watched = carve.capture(operator.LinearAttention.eval, file=path)
    o, state = watched(
        flat(x["q"]),
        flat(x["k"]),
        flat(x["v"]),
        x["initial_state"],
        *(decay or ([None] if "beta" in gates else [])),
        *([x["beta"]] if "beta" in gates else []),
        q_num_heads=queries,
        kv_num_heads=2,
        update_rule=rule,
        scale=0.3 if rule == "gated_delta" else 0.0,
    )
    assert o.shape == (B, T, queries * V) and state.shape == (B, 2, K, V)
    table = verdict(path)
    assert ("scale 0.3" in table) == (rule == "gated_delta")


@pytest.mark.parametrize("decay", ["g", "gk"])
def test_mlx(decay, tmp_path):
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    models = pytest.importorskip("mlx_lm.models.gated_delta")
    x = numbers()
    path = tmp_path / "call.safetensors"
    watched = carve.capture(models.gated_delta_ops, file=path)
    state = x["initial_state"].swapaxes(2, 3).copy()
    y, after = watched(
        *(mx.array(x[n]) for n in "qkv"),
        mx.array(np.exp(x[decay])),
        mx.array(x["beta"]),
        mx.array(state),
    )
    assert after.shape == (B, HV, V, K)
    assert "final_state" in verdict(path)
    mask = mx.array(np.ones((B, T), bool))
    with pytest.raises(ValueError, match="mask: a dump cannot say"):
        carve.capture(models.gated_delta_ops, file=path)(
            *(mx.array(x[n]) for n in "qkv"),
            mx.array(x[decay]),
            mx.array(x["beta"]),
            mask=mask,
        )


@pytest.mark.parametrize("bound, doubled", [(None, False), (-4.0, True)])
def test_mlx_from_logits(bound, doubled, tmp_path):
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    models = pytest.importorskip("mlx_lm.models.gated_delta")
    x = numbers()
    path = tmp_path / "call.safetensors"
    watched = carve.capture(models.gated_delta_update, file=path)
    watched(
        *(mx.array(x[n]) for n in ("q", "k", "v", "logits")),
        mx.array(x["logits"][:, ::-1].copy()),
        mx.array(x["A_log"]),
        mx.array(x["dt_bias"]),
        lower_bound=bound,
        allow_neg_eigval=doubled,
    )
    assert "final_state" in verdict(path)


def flashinfer_prefill(q, k, v, g, beta, scale, initial_state):
    """What FlashInfer's documentation says of its function, token by token."""
    H, HV, groups = q.shape[1], v.shape[1], max(q.shape[1], v.shape[1])
    q, k, v = (np.repeat(x, groups // x.shape[1], 1) for x in (q, k, v))
    S = initial_state.swapaxes(1, 2).copy()  # one sequence: [1,groups,V,K]
    S = initial_state[0].swapaxes(1, 2).copy()
    o = np.empty((len(q), groups, v.shape[2]), np.float32)
    for t in range(len(q)):
        S *= g[t][:, None, None]
        error = v[t] - np.einsum("hk,hkv->hv", k[t], S)
        S += np.einsum("hk,hv->hkv", k[t], beta[t][:, None] * error)
        o[t] = np.einsum("hk,hkv->hv", q[t], S) * np.float32(scale or K**-0.5)
    return o, S.swapaxes(1, 2)[None]


@pytest.mark.parametrize("H, HV", [(2, 4), (4, 2)])
@pytest.mark.parametrize("gates", ["g beta", ""])
def test_flashinfer(H, HV, gates, tmp_path):
    """The package needs a GPU: its conventions, by a stand-in."""

    def chunk_gated_delta_rule(
        q,
        k,
        v,
        g=None,
        beta=None,
        scale=None,
        initial_state=None,
        output_final_state=False,
        cu_seqlens=None,
        state_indices=None,
    ):
        ones = np.ones((T, max(H, HV)), np.float32)
        return flashinfer_prefill(
            q,
            k,
            v,
            ones if g is None else g,
            ones if beta is None else beta,
            scale,
            initial_state,
        )

    heads = max(H, HV)
    x = numbers(H=H, HV=HV)
    more = numbers(H=H, HV=heads, seed=1)
    path = tmp_path / "call.safetensors"
    watched = carve.capture(
        chunk_gated_delta_rule, file=path, adapter="flashinfer.chunk_gated_delta_rule"
    )
    state = more["initial_state"].swapaxes(2, 3).copy()
    given = {}
    if gates:
        given = {"g": np.exp(more["g"][0]), "beta": more["beta"][0], "scale": 0.3}
    watched(
        x["q"][0],
        x["k"][0][:, : min(H, HV)],
        x["v"][0],
        initial_state=state,
        cu_seqlens=np.array([0, T]),
        output_final_state=True,
        **given,
    )
    table = verdict(path)
    assert "final_state" in table
    with pytest.raises(ValueError, match="state_indices: a dump cannot say"):
        carve.capture(
            chunk_gated_delta_rule,
            file=path,
            adapter="flashinfer.chunk_gated_delta_rule",
        )(x["q"][0], x["k"][0], x["v"][0], state_indices=np.array([0]))


def test_a_wrong_call_fails(tmp_path):
    """The adapter does not make everything pass: a kernel that ignores its
    start state is still found."""

    def chunk_gated_delta_rule(q, k, v, g, beta, initial_state=None):
        r = carve.reference("gdn", q=q, k=k, v=v, g=g, beta=beta)
        return tuple(r[n].astype(np.float32) for n in ("o", "final_state"))

    x = numbers()
    path = tmp_path / "call.safetensors"
    carve.capture(
        chunk_gated_delta_rule, file=path, adapter="fla.chunk_gated_delta_rule"
    )(**{n: x[n] for n in ("q", "k", "v", "g", "beta", "initial_state")})
    said = subprocess.run(["carve", "verify", path], capture_output=True, text=True)
    assert said.returncode == 1 and "FAIL" in said.stdout


def test_unknown_functions_and_adapters(tmp_path):
    with pytest.raises(ValueError, match="family: expected, as test_adapters.mine"):

        def mine(q, k, v):
            return q

        mine.__module__ = "test_adapters.inner"
        carve.capture(mine, file=tmp_path / "x")
    with pytest.raises(ValueError, match="adapter: expected one of fla.chunk_"):
        carve.capture(len, file=tmp_path / "x", adapter="fla.chunk_nothing")
    with pytest.raises(ValueError, match="adapter: expected without family"):
        carve.capture(len, file="x", adapter="fla.chunk_kda", family="kda")


def test_rows_name_what_there_is():
    """Every tensor and setting that a row speaks of is the library's."""
    known = {"cu_seqlens", *_adapters.SETTINGS}
    for family in carve.families():
        known |= set(carve._arrays.tensors_of(family))
    assert len(set(_adapters.names_of_adapters())) == len(_adapters.names_of_adapters())
    for row in _adapters.ADAPTERS:
        settings = {*row.settings}.union(*(found for _, found in row.says))
        assert {*row.names.values(), *row.made, *settings} <= known, row.functions
        assert settings <= _adapters.SETTINGS
