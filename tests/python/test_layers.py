"""Are the layers of carve.torch.nn complete, and do they learn?"""

import pytest

torch = pytest.importorskip("torch")

import carve
from carve.torch import nn

LAYERS = [nn.GatedDeltaNet2, nn.Carve, nn.KimiDeltaAttention, nn.GatedDeltaNet]


def small(layer, **how):
    torch.manual_seed(0)
    how = {"hidden_size": 12, "num_heads": 2, "head_dim": 4, "expand_v": 1.5, **how}
    if layer is nn.Carve:
        how |= {"window": 4, "rank": 2}
    made = layer(**how)
    if layer is nn.Carve:  # zero at first: nothing would flow through W_down
        torch.nn.init.normal_(made.w_up, std=0.5)
    return made


def parameters(layer):
    return sum(p.numel() for p in layer.parameters())


def test_parameters_are_those_of_the_ledger():
    with torch.device("meta"):
        gdn2, carve_ = nn.GatedDeltaNet2(), nn.Carve()
    assert parameters(gdn2) == 26_243_216
    gate = carve_.w_down.numel() + carve_.w_up.numel()
    assert gate == 65_536
    assert parameters(carve_) - gate == 22_081_680


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_slopes(layer):
    made = small(layer).double()
    x = torch.randn(1, 9, 12, dtype=torch.float64, requires_grad=True)
    state = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    names, values = zip(*made.named_parameters())

    def call(x, state, *values):
        return torch.func.functional_call(
            made,
            dict(zip(names, values)),
            (x,),
            {"initial_state": state, "output_final_state": True},
        )

    y, after = call(x, state, *values)
    assert y.shape == x.shape and after.shape == state.shape
    assert torch.autograd.gradcheck(call, (x, state, *values), fast_mode=True)


@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_causal_and_goes_on_from_a_state(layer):
    made = small(layer).double()
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    y = made(x)
    later = x.clone()
    later[:, 5:] += 1
    assert torch.equal(made(later)[:, :5], y[:, :5])
    assert not torch.allclose(made(later)[:, 5:], y[:, 5:])
    with pytest.raises(ValueError, match="cu_seqlens"):
        made(x, cu_seqlens=torch.tensor([0, 9]))


@pytest.mark.parametrize("layer", LAYERS)
def test_training_lowers_a_loss(layer):
    made = small(layer)
    x, target = torch.randn(4, 16, 12), torch.randn(4, 16, 12)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = (made(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(p.grad is not None for p in made.parameters())


def test_the_memory_is_the_reference():
    """What the CARVE layer gives its memory, and what comes of it, is the
    family's."""
    made = small(nn.Carve).double()
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    seen = {}
    memory = made.memory

    def watched(x, arguments):
        seen.update(arguments)
        seen["o"] = memory(x, arguments)[0]
        return seen["o"], None

    made.memory = watched
    made(x)
    exact = carve.reference(
        "carve",
        **{n: seen[n] for n in ("q", "k", "v", "g", "A_log")},
        dt_bias=made.dt_bias.view(2, 4),
        b=made._heads(made.b_proj(x)),
        w=made.w_proj(x),
        w_down=made.w_down,
        w_up=made.w_up,
        window=4,
        decay_activation="softplus",
        w_activation="sigmoid",
        l2norm=True,
    )
    torch.testing.assert_close(seen["o"], torch.tensor(exact["o"]))
