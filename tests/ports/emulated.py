#!/usr/bin/env python3
"""What do kernels make that round where the replay does not?

usage: emulated.py FOLDER

Writes e1_* and e2_*.safetensors: Gated DeltaNet in chunks of 48 tokens,
forward as the page "The mathematics" has it and backward by automatic
differentiation, the operands of every product rounded to bf16 on both ways.
Needs PyTorch and safetensors.
"""
import math
import sys

import torch
from safetensors.torch import save_file

CHUNK, T, H, K, V = 48, 100, 1, 24, 24


class Rounded(torch.autograd.Function):
    """A number of bf16, and so is its cotangent."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, dx):
        return dx.bfloat16().float()


class Product(torch.autograd.Function):
    """A matrix product of operands in bf16, summed in fp32."""

    @staticmethod
    def forward(ctx, a, b):
        a, b = a.bfloat16().float(), b.bfloat16().float()
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, dy):
        a, b = ctx.saved_tensors
        dy = dy.bfloat16().float()
        return dy @ b.transpose(-1, -2), a.transpose(-1, -2) @ dy


def product(a, b):
    return Product.apply(a, b)


def chunked(q, k, v, g, beta, state, scale):
    """[H,T,*], the gates [H,T,1]: o and the final state."""
    outs = []
    for t in range(0, q.shape[1], CHUNK):
        qc, kc, vc, gc, bc = (x[:, t:t + CHUNK] for x in (q, k, v, g, beta))
        n = qc.shape[1]
        total = torch.cumsum(gc, 1)
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        ratio = torch.exp((total - total.transpose(1, 2)).where(seen, 0)) * seen
        kt = kc.transpose(1, 2)
        erased = product(kc * bc, kt) * ratio.tril(-1)
        one = torch.eye(n).expand_as(erased)
        inverse = torch.linalg.solve_triangular(
            one + erased, one, upper=False, unitriangular=True)
        u = product(inverse, vc * bc) - product(
            product(inverse, kc * bc * torch.exp(total)), state)
        scores = product(qc, kt) * ratio * scale
        # The decay and the scale are multiplied into q before it is rounded.
        outs.append(product(qc * torch.exp(total) * scale, state)
                    + product(scores, u))
        end = total[:, -1:]
        state = state * torch.exp(end) + product(
            (kc * torch.exp(end - total)).transpose(1, 2), u)
    return torch.cat(outs, 1), state


def l2norm(x):
    """In arithmetic of bf16, operation by operation."""
    y = x.bfloat16()
    return (y * torch.rsqrt((y * y).sum(-1, keepdim=True) + 1e-6)).float()


def dump(path, least, normalise=False):
    random = torch.Generator().manual_seed(11)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    q, k = normal(H, T, K), normal(H, T, K)
    if not normalise:
        q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    q, k, v, do, beta = (
        x.bfloat16().float() for x in
        (q, k, normal(H, T, V), normal(H, T, V), torch.sigmoid(normal(H, T, 1))))
    g = least * torch.rand(H, T, 1, generator=random) ** 2
    state, dstate = 0.3 * normal(H, K, V), 0.3 * normal(H, K, V)
    leaves = [x.requires_grad_() for x in (q, k, v, g, beta, state)]
    qn, kn = (l2norm(q), l2norm(k)) if normalise else (q, k)
    o, final = chunked(qn, kn, v, g, beta, state, 1 / math.sqrt(K))
    grads = torch.autograd.grad([o, final], leaves, [do, dstate])

    def token(x):
        y = x.detach().transpose(0, 1)[None]
        return (y[..., 0] if y.shape[-1] == 1 else y).contiguous()

    tensors = {"initial_state": state.detach()[None].clone(),
               "final_state": final.detach()[None].clone(),
               "dfinal_state": dstate[None].clone(),
               "dinitial_state": grads[5][None].clone(),
               "g": token(g), "dg": token(grads[3])}
    for name, x in (("q", q), ("k", k), ("v", v), ("beta", beta), ("do", do),
                    ("o", o), ("dq", grads[0]), ("dk", grads[1]),
                    ("dv", grads[2]), ("dbeta", grads[4])):
        tensors[name] = token(x).bfloat16()
    settings = {"family": "gdn"}
    if normalise:
        settings["l2norm"] = "true"
    save_file(tensors, path, settings)


def main():
    folder = sys.argv[1]
    torch.set_num_threads(1)
    dump(folder + "/e1_bf16_folded_decay.safetensors", -4.0)
    dump(folder + "/e2_bf16_l2norm_in_bf16.safetensors", -0.5, normalise=True)


if __name__ == "__main__":
    main()
