#!/usr/bin/env python3
"""How much faster is carve in double than a PyTorch float64 token loop?

usage: pytorch_loop.py build/bin/carve-bench

Runs both on the same problem (GDN-2, B = 1, T = 256, H = 16, K = V = 128,
forward and backward) and prints the ratios of wall and of CPU time.  The loop
is the recurrence as one would write it, all heads at once, with gradients by
autograd; it is timed with one thread and with all, and the better one counts.
carve uses all.  Needs PyTorch; the CPU wheel will do.
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


def pytorch_seconds(threads):
    """Wall and CPU time, the least of two runs each."""
    torch.set_num_threads(threads)
    inputs, cotangent = sample()
    runs = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        forward(**inputs).backward(cotangent)
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return tuple(map(min, zip(*runs)))


def carve_seconds(program):
    command = [
        program,
        f"--benchmark_filter=whole/double/tokens:{TOKENS}/",
        "--benchmark_format=json",
    ]
    runs = []
    for _ in range(3):
        text = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ).stdout
        result, _ = json.JSONDecoder().raw_decode(text)
        result = result["benchmarks"][0]
        runs.append((result["real_time"], result["cpu_time"]))
    return tuple(map(min, zip(*runs)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"PyTorch {torch.__version__}, float64   wall [s]   CPU [s]")
    loops = []
    for threads in sorted({1, os.cpu_count()}):
        loops.append(pytorch_seconds(threads))
        wall, cpu = loops[-1]
        print(f"token loop, {threads} threads       {wall:8.3f}  {cpu:8.3f}")
    loop = tuple(map(min, zip(*loops)))
    carve = carve_seconds(sys.argv[1])
    print(f"carve, double               {carve[0]:8.3f}  {carve[1]:8.3f}")
    print(f"ratio                       "
          f"{loop[0] / carve[0]:8.1f}  {loop[1] / carve[1]:8.1f}")
