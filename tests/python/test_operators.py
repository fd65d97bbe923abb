"""Are the operators of carve.torch what FLA's functions are, for torch and for
the models that call them?  On a CPU; a GPU has gpu_torch.py."""

import importlib

import pytest

torch = pytest.importorskip("torch")

import carve
import carve.torch as ct

import families
from clients import both_ways, tiny_qwen3_next
from families import FAMILIES


def inputs(family, dtype=torch.float64, **how):
    how = {"HV": 2, "V": 3, "state": True, "wide": ("initial_state",), **how}
    return families.inputs(family, dtype, **how)


def more(family):
    return families.more(family, window=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_slopes(family):
    fn, _ = FAMILIES[family]
    x = inputs(family)

    def call(*args):
        return fn(**dict(zip(x, args)), output_final_state=True, **more(family))

    assert torch.autograd.gradcheck(call, tuple(x.values()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_references(family, dtype):
    fn, _ = FAMILIES[family]
    x = inputs(family, dtype, B=2, T=33, K=16, V=8)
    o, state = fn(**x, output_final_state=True, scale=0.3, **more(family))
    assert o.dtype == dtype and state.dtype == torch.float32
    exact = carve.reference(family, **x, scale=0.3, **more(family))
    assert torch.equal(o.detach(), torch.tensor(exact["o"]).to(dtype))
    assert torch.equal(state.detach(), torch.tensor(exact["final_state"]).float())
    do = torch.randn_like(o)
    found = torch.autograd.grad(o, list(x.values()), do)
    exact = carve.reference(family, **x, do=do, scale=0.3, **more(family))
    for n, d in zip(x, found):
        assert d.dtype == x[n].dtype
        torch.testing.assert_close(d, torch.tensor(exact["d" + n]).to(d.dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_opcheck(family):
    x = inputs(family, torch.float32)
    rows = [x.get(n) for n in ct._native.INPUTS]
    window = 4 if family == "carve" else 0
    arguments = (family, *rows, None, 0.5, window, True)
    checked = torch.library.opcheck(torch.ops.carve.forward.default, arguments)
    assert set(checked.values()) == {"SUCCESS"}
    o, state, means = torch.ops.carve.forward(*arguments)
    wanted = [r is not None for r in rows]
    plain = [None if r is None else r.detach() for r in rows]
    checked = torch.library.opcheck(
        torch.ops.carve.backward.default,
        (family, *plain, None, 0.5, window, o.detach(), None, means.detach(), wanted),
    )
    assert set(checked.values()) == {"SUCCESS"}
    one = {n: a.detach()[:, :1] for n, a in x.items() if a.dim() > 2 and n[0] != "i"}
    state = x["initial_state"].detach().clone()
    gates = [one.get(n) for n in ("g", "beta", "b", "w")]
    checked = torch.library.opcheck(
        torch.ops.carve.decode.default,
        (family, one["q"], one["k"], one["v"], *gates, state, 0.5),
    )
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("family", FAMILIES)
def test_compile(family):
    fn, _ = FAMILIES[family]
    x = inputs(family, torch.float32)

    def loss(**x):
        o, state = fn(**x, output_final_state=True, **more(family))
        return o.square().sum() + state.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    plain = torch.autograd.grad(loss(**x), list(x.values()))
    found = torch.autograd.grad(compiled(**x), list(x.values()))
    for a, b in zip(plain, found):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_is_the_next_token(family):
    fn, _ = FAMILIES[family]
    x = {n: a.detach() for n, a in inputs(family, torch.float32, T=1).items()}
    o, after = fn(**x, output_final_state=True, **more(family))
    state = x.pop("initial_state").clone()
    x = {n: a for n, a in x.items() if n not in ("w_down", "w_up")}
    if family == "carve":  # before a window ends the gate is the logit's
        x["b"] = x["b"].sigmoid()
    q, k, v = (x.pop(n) for n in "qkv")
    found = ct.decode(family, q, k, v, state, **x)
    torch.testing.assert_close(found, o)
    torch.testing.assert_close(state, after)


def test_packed_sequences_and_transposed_states():
    x = {n: a.detach() for n, a in inputs("gdn", torch.float32, T=20).items()}
    states = torch.randn(2, 2, 3, 4)
    start = x.pop("initial_state")
    o, after = ct.chunk_gated_delta_rule(
        **x,
        initial_state=states,
        state_v_first=True,
        output_final_state=True,
        cu_seqlens=torch.tensor([0, 7, 20]),
    )
    assert start.shape == (1, 2, 4, 3) and after.shape == states.shape
    for i, part in enumerate([slice(0, 7), slice(7, 20)]):
        alone, end = ct.chunk_gated_delta_rule(
            **{n: a[:, part] for n, a in x.items()},
            initial_state=states[i : i + 1].transpose(-1, -2),
            output_final_state=True,
        )
        torch.testing.assert_close(o[:, part], alone)
        torch.testing.assert_close(after[i], end[0].transpose(-1, -2))


def test_dispatch_is_left_out_only_where_it_changes_nothing():
    """A mode, a subclass and a gradient see the operator; a plain call gives
    the same without it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    x = inputs("gdn", torch.float32)
    plain = {n: a.detach() for n, a in x.items()}
    calls = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            calls.append(str(op))
            return op(*args, **(kwargs or {}))

    with Watching():
        seen, _ = ct.chunk_gated_delta_rule(**plain)
    assert "carve.forward.default" in calls
    o, _ = ct.chunk_gated_delta_rule(**plain)
    assert torch.equal(o, seen) and not o.requires_grad
    o, _ = ct.chunk_gated_delta_rule(**x)
    assert torch.equal(o, seen) and o.requires_grad
    with torch.no_grad():
        o, _ = ct.chunk_gated_delta_rule(**x)
    assert torch.equal(o, seen) and not o.requires_grad
    with torch._subclasses.FakeTensorMode() as mode:
        fake = {n: mode.from_tensor(a) for n, a in plain.items()}
        o, _ = ct.chunk_gated_delta_rule(**fake)
    assert type(o) is torch._subclasses.FakeTensor and o.shape == seen.shape


def test_what_cannot_be_used_is_said():
    x = inputs("gdn", torch.float32)
    with pytest.raises(ValueError, match="cp_context: carve.torch has no such"):
        ct.chunk_gated_delta_rule(**x, cp_context=object())
    with pytest.raises(ValueError, match="beta: missing; family gdn needs"):
        ct.chunk_gated_delta_rule(**{**x, "beta": None})
    with pytest.raises(ValueError, match="package: expected one of fla, transformers"):
        ct.accelerate("numpy")
    o, _ = ct.chunk_gated_delta_rule(**x)
    (d,) = torch.autograd.grad(o.sum(), x["q"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no derivative of its own"):
        torch.autograd.grad(d.sum(), x["k"])


def test_logits_are_activated_as_fla_does():
    torch.manual_seed(0)
    x = inputs("kda", torch.float32)
    x["initial_state"] = x["initial_state"].detach()
    A_log, dt_bias = torch.randn(2), torch.randn(8)
    exact = carve.reference(
        "kda",
        **x,
        A_log=A_log,
        dt_bias=dt_bias.view(2, 4),
        decay_activation="softplus",
        beta_activation="doubled_sigmoid",
        l2norm=True,
    )
    o, _ = ct.chunk_kda(
        **x,
        A_log=A_log,
        dt_bias=dt_bias,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        allow_neg_eigval=True,
        use_qk_l2norm_in_kernel=True,
    )
    torch.testing.assert_close(o.double(), torch.tensor(exact["o"]), rtol=1e-5, atol=1e-6)


def same_model(model, run, package):
    """Output and gradients of a model as it is and accelerated."""
    differences, calls = both_ways(model, run, package, least=1e-7)
    assert {"forward", "backward"} <= set(calls)
    assert differences["output"] < 1e-5, differences
    # Gradients of decays are small and theirs are sums in float32.
    assert max(differences.values()) < 1e-2, differences


def test_a_tiny_qwen3_next(monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    same_model(*tiny_qwen3_next(monkeypatch.setattr), "transformers")


def test_an_fla_gated_delta_net(monkeypatch):
    """FLA's kernels need a GPU; on a CPU its own recurrence in torch answers
    for them, behind the layer of the package."""
    pytest.importorskip("triton", reason="FLA needs triton")
    pytest.importorskip("fla", reason="fla-core is not installed")
    try:
        layers = importlib.import_module("fla.layers.gated_deltanet")
    except ImportError as e:
        pytest.skip(f"fla.layers: {e}")
    if torch.cuda.is_available():
        pytest.skip("gpu_torch.py has it")
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    def naive(q, k, v, g, beta, A_log, dt_bias, output_final_state, **_):
        norm = lambda x: x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
        decay = -A_log.exp() * torch.nn.functional.softplus(g + dt_bias)
        return naive_recurrent_gated_delta_rule(
            norm(q), norm(k), v, beta.sigmoid(), decay, output_final_state=False
        )

    monkeypatch.setattr(layers, "chunk_gated_delta_rule", naive)
    torch.manual_seed(0)
    layer = layers.GatedDeltaNet(
        hidden_size=32,
        head_dim=8,
        num_heads=2,
        use_short_conv=False,
        use_gate=False,
        expand_v=1,
    )

    class Norm(torch.nn.Module):
        """FLA's norm is a kernel too."""

        def forward(self, x):
            return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    layer.o_norm = Norm()
    x = torch.randn(2, 70, 32)
    same_model(layer, lambda: layer(x)[0], "fla")
