"""Which models call the functions that carve.torch takes the place of?  Small ones
of the packages themselves, and the same model run both ways."""

import inspect

import torch

import carve.torch as ct
from carve.torch import _operators


def both_ways(model, run, package, least):
    """Relative differences, by name, of `run()` and of the gradients of its square
    between the package's own functions and carve.torch's; and what was called
    of ours.  A gradient counts as at least `least` of the largest: what is zero
    but for its roundings differs in all digits."""
    calls = []
    call = _operators.call

    def counted(name, *arguments):
        calls.append(name)
        return call(name, *arguments)

    def once():
        model.zero_grad()
        out = run()
        out.float().square().mean().backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {"output": out.detach(), **found}

    theirs = once()
    _operators.call = counted
    try:
        assert ct.accelerate(package) > 0
        ours = once()
        ct.restore()
        called = list(calls)
        once()
        assert calls == called, "restore() left something"
    finally:
        ct.restore()
        _operators.call = call
    assert set(ours) == set(theirs)
    floor = least * max(float(x.norm()) for n, x in theirs.items() if n != "output")
    return {
        n: relative(ours[n], x, 0 if n == "output" else floor)
        for n, x in theirs.items()
    }, called


def relative(found, exact, floor=0.0) -> float:
    """Norm of the difference in that of what is right, or in `floor`."""
    exact = exact.double().cpu()
    wrong = float((found.double().cpu() - exact).norm())
    return wrong / max(float(exact.norm()), floor) if wrong else 0.0


def tiny_qwen3_next(set_attribute=setattr, width=32, **how):
    """The model and `run`.  With transformers' own functions, in torch: where FLA
    can be imported, or a hub reached, the names would lead there."""
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

    for n in (
        "torch_chunk_gated_delta_rule",
        "torch_recurrent_gated_delta_rule",
        "causal_conv1d_fn",
        "causal_conv1d_update",
    ):
        set_attribute(qwen, n, inspect.unwrap(getattr(qwen, n)))
    config = Qwen3NextConfig(
        vocab_size=50,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=width // 4,
        linear_value_head_dim=width // 4,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    torch.manual_seed(0)
    model = qwen.Qwen3NextForCausalLM(config).to(**how).train()
    tokens = torch.randint(0, 50, (2, 101), device=how.get("device", "cpu"))
    return model, lambda: model(input_ids=tokens, use_cache=False).logits
