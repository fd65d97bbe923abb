#!/usr/bin/env python3
"""How much faster is carve in double than a PyTorch float64 token loop?

usage: pytorch_loop.py build/bin/carve-bench

Runs both on the same problem (GDN-2, B = 1, T = 256, H = 16, K = V = 128,
forward and backward) with the same number of threads and prints the ratio.
The loop is the recurrence as one would write it, all heads at once, with
gradients by autograd.  Needs PyTorch; the CPU wheel will do.
"""

import json
import os
import subprocess
import sys
import time

import torch

TOKENS, HEADS, WIDTH = 256, 16, 128


def sample():
    torch.manual_seed(3)
    shape = (TOKENS, HEADS, WIDTH)
    make = lambda: torch.randn(shape, dtype=torch.float64)
    inputs = {
        "q": make() / WIDTH**0.5,
        "k": make() / WIDTH**0.5,
        "v": make(),
        "g": -0.2 * make().abs(),
        "b": torch.sigmoid(make()),
        "w": torch.sigmoid(make()),
    }
    for x in inputs.values():
        x.requires_grad_()
    return inputs, make()


def forward(q, k, v, g, b, w):
    decay, erase, write = g.exp(), b * k, w * v
    S = torch.zeros(HEADS, WIDTH, WIDTH, dtype=torch.float64)
    o = []
    for t in range(TOKENS):
        S = decay[t].unsqueeze(-1) * S
        u = write[t] - torch.einsum("hk,hkv->hv", erase[t], S)
        S = S + k[t].unsqueeze(-1) * u.unsqueeze(-2)
        o.append(torch.einsum("hk,hkv->hv", q[t], S))
    return torch.stack(o) / WIDTH**0.5


def pytorch_seconds():
    inputs, cotangent = sample()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        forward(**inputs).backward(cotangent)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def carve_seconds(program):
    seconds = []
    for _ in range(3):
        text = subprocess.run(
            [
                program,
                f"--benchmark_filter=whole/double/tokens:{TOKENS}/",
                "--benchmark_format=json",
            ],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ).stdout
        result, _ = json.JSONDecoder().raw_decode(text)
        seconds.append(result["benchmarks"][0]["real_time"])
    return min(seconds)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(os.cpu_count())
    loop, carve = pytorch_seconds(), carve_seconds(sys.argv[1])
    print(f"PyTorch {torch.__version__} float64 token loop {loop:8.3f} s")
    print(f"carve double                     {carve:8.3f} s")
    print(f"ratio                            {loop / carve:8.1f}")
