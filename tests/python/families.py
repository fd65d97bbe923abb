"""Which functions has carve.torch, and what are they called with?  For the tests
and for what runs on a GPU."""

import torch

import carve.torch as ct

#: Family -> its function and names of its tensors.
FAMILIES = {
    "delta": (ct.chunk_delta_rule, "q k v beta"),
    "gdn": (ct.chunk_gated_delta_rule, "q k v g beta"),
    "kda": (ct.chunk_kda, "q k v g beta"),
    "gdn2": (ct.chunk_gdn2, "q k v g b w"),
    "carve": (ct.chunk_carve, "q k v g b w w_down w_up"),
}
#: What stays in float32 where the rest is narrower.
WIDE = ("g", "initial_state", "w_down", "w_up")


def inputs(
    family,
    dtype,
    *,
    B=1,
    T=9,
    H=1,
    HV=None,
    K=4,
    V=None,
    rank=2,
    state=False,
    wide=WIDE,
    device="cpu",
):
    """Tensors that require gradients: unit q and k, natural decays, gates between
    0 and 1, with `state` a start state.  What is in `wide` is float32 at
    least."""
    HV, V = HV or H, V or K
    key_gates = family not in ("gdn", "delta")
    shapes = {
        "q": (B, T, H, K),
        "k": (B, T, H, K),
        "v": (B, T, HV, V),
        "g": (B, T, HV, K) if key_gates else (B, T, HV),
        "beta": (B, T, HV),
        "b": (B, T, HV, K),
        "w": (B, T, HV) if family == "carve" else (B, T, HV, V),
        "w_down": (HV, rank, V),
        "w_up": (HV, K, rank),
        "initial_state": (B, HV, K, V),
    }
    generator = torch.Generator().manual_seed(0)
    names = FAMILIES[family][1].split() + ["initial_state"] * state
    x = {
        n: torch.randn(shapes[n], generator=generator, dtype=torch.float64)
        for n in names
    }
    for n in "qk":
        x[n] = torch.nn.functional.normalize(x[n], dim=-1)
    if "g" in x:
        x["g"] = -torch.nn.functional.softplus(x["g"]) / 4
    for n in ("beta", "w") + (() if family == "carve" else ("b",)):
        if n in x:
            x[n] = x[n].sigmoid()  # of carve, b are logits
    if family == "carve":
        x["w_down"] /= V**0.5
    at_least = torch.promote_types(dtype, torch.float32)
    return {
        n: a.to(device, at_least if n in wide else dtype).requires_grad_()
        for n, a in x.items()
    }


def more(family, window):
    """Settings of the family."""
    return {"window": window} if family == "carve" else {}
