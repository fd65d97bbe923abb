#!/usr/bin/env python3
"""Dumps of flash-linear-attention's naive functions of the general step.

Usage: fla_naive.py FLA OUT

FLA is the folder that holds fla-core's `fla` (0.6.0 made the dumps here), OUT
where the files go. The naive files are loaded one by one, since importing the
package asks for Triton. Needs torch (CPU) and einops.
"""
import importlib.util
import json
import pathlib
import struct
import sys

import torch

B, T, H, K, V = 1, 40, 2, 16, 12


def load(root, path):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"),
                                                  root / "fla/ops" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(path, tensors, metadata):
    header, data = {"__metadata__": metadata}, b""
    for name, x in tensors.items():
        raw = x.detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(x.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def unit(*shape):
    x = torch.randn(*shape)
    return x / x.norm(dim=-1, keepdim=True)


def record(out, name, family, function, inputs, run):
    """run(inputs) gives o [B,T,H,V] and final_state [B,H,K,V]."""
    for x in inputs.values():
        x.requires_grad_()
    o, state = run(**inputs)
    do, dstate = torch.randn_like(o), torch.randn_like(state)
    ((o * do).sum() + (state * dstate).sum()).backward()
    tensors = dict(inputs)
    tensors |= {"o": o, "final_state": state, "do": do,
                "dfinal_state": dstate}
    tensors |= {"d" + n: x.grad for n, x in inputs.items()}
    save(out / f"{name}.safetensors", tensors,
         {"family": family, "scale": repr(K**-0.5), "layout": "[B,T,H,D]",
          "state_layout": "[N,H,K,V]", "library": "fla-core 0.6.0",
          "function": function, "torch": torch.__version__})


def main():
    root, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    torch.manual_seed(20261128)
    comba = load(root, "comba/naive.py")
    dplr = load(root, "generalized_delta_rule/dplr/naive.py")
    product = load(root, "gated_delta_product/naive.py")

    def common(n=1):
        return {"q": unit(B, T, H, K), "k": unit(B, T * n, H, K),
                "v": torch.randn(B, T * n, H, V)}

    def state():
        return torch.randn(B, H, K, V)

    def decay(*shape):
        return -torch.rand(*shape) * 0.5

    def swap(x):
        return x.transpose(1, 2)

    for name in ("chunk", "recurrent"):
        function = f"naive_{name}_comba"
        options = {"chunk_size": 16} if name == "chunk" else {}
        record(out, f"comba_{name}", "comba", function,
               common() | {"p": unit(B, T, H, K), "beta": torch.rand(B, T, H),
                           "g": decay(B, T, H), "initial_state": state()},
               lambda **x: getattr(comba, function)(
                   **x, output_final_state=True, **options))

    def run_dplr(q, k, v, r, y, g, initial_state):
        o, end = dplr.dplr_recurrence(*map(swap, (q, k, v, r, -y, g)),
                                      initial_state=initial_state)
        return swap(o), end

    record(out, "dplr", "dplr", "dplr_recurrence",
           common() | {"r": unit(B, T, H, K), "y": unit(B, T, H, K),
                       "g": decay(B, T, H, K), "initial_state": state()},
           run_dplr)
    # fla-core has no naive form of RWKV-7; its kernels hand a = -kappa and
    # b = kappa * eta to those of DPLR.
    record(out, "rwkv7", "rwkv7", "dplr_recurrence",
           common() | {"r": unit(B, T, H, K), "b": torch.rand(B, T, H, K),
                       "g": decay(B, T, H, K), "initial_state": state()},
           lambda q, k, v, r, b, g, initial_state: run_dplr(
               q, k, v, r, r * b, g, initial_state))
    for n in (2, 3):
        record(out, f"gated_delta_product_{n}", "gated_delta_product",
               "naive_recurrent_gated_delta_product",
               common(n) | {"beta": torch.rand(B, T * n, H) * 2,
                            "g": decay(B, T, H), "initial_state": state()},
               lambda **x: product.naive_recurrent_gated_delta_product(
                   **x, scale=K**-0.5, output_final_state=True,
                   num_householder=n))


if __name__ == "__main__":
    main()
