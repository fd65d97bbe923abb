#!/usr/bin/env python3
"""How do this library's kernels compare with other people's on the same card?

rivals.py [build/bin/carve-cuda-bench] [--only NAME,...] [--shape BxTxHxD ...]
          [--output FILE]

In one run: carve-cuda-bench, and every rival that can be imported, on the same
shapes (bf16, K = V).  A rival's time is that of a replayed CUDA graph where it
is a PyTorch function (its launches from Python cost more than its kernels), of
a compiled function called in a row where it is a JAX one; this library's is
that of its launches.  Writes a table to standard output, and to FILE what
docs/figures reads: a line for each of them, nanoseconds per token and value
head, with the card, the date and the versions on top.

`carve-cuda-bench --rivals` runs it.

What a rival keeps from its forward for its backward is outside the time of its
backward; the sentence of its function below says what.  Two rivals drop part of
the recurrence (see docs/differences.md); the table marks them with *.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
import time

SHAPES = ["8x4096x16x128", "1x8192x16x128", "1x65536x16x128", "4x2048x32x128"]


# --- inputs: unit keys, natural decays, gates in (0, 1) -------------------------


def torch_inputs(family, size):
    import torch

    B, T, H, D = size
    generator = torch.Generator(device="cuda").manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, device="cuda", generator=generator)

    def unit(x):
        return torch.nn.functional.normalize(x, dim=-1).bfloat16()

    per_channel = family != "gdn"
    x = {
        "q": unit(normal(B, T, H, D)),
        "k": unit(normal(B, T, H, D)),
        "v": normal(B, T, H, D).bfloat16(),
        "g": -0.1
        * torch.nn.functional.softplus(
            normal(B, T, H, D) if per_channel else normal(B, T, H)
        ),
    }
    if family == "gdn2":
        x["b"] = torch.sigmoid(normal(B, T, H, D)).bfloat16()
        x["w"] = torch.sigmoid(normal(B, T, H, D)).bfloat16()
    else:
        x["beta"] = torch.sigmoid(normal(B, T, H))
    return x


def jax_inputs(family, size):
    import jax
    import jax.numpy as jnp

    B, T, H, D = size
    keys = iter(jax.random.split(jax.random.PRNGKey(1), 8))

    def normal(*shape):
        return jax.random.normal(next(keys), shape)

    def unit(x):
        return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(jnp.bfloat16)

    wide = (B, T, H, D)
    q, k = unit(normal(*wide)), unit(normal(*wide))
    v = normal(*wide).astype(jnp.bfloat16)
    g = -0.1 * jax.nn.softplus(normal(*(wide if family != "gdn" else wide[:3])))
    if family == "gdn2":
        gates = [jax.nn.sigmoid(normal(*wide)).astype(jnp.bfloat16) for _ in "bw"]
    else:
        gates = [jax.nn.sigmoid(normal(*wide[:3]))]
    return (q, k, v, g, *gates)


# --- clocks ---------------------------------------------------------------------


def replayed(call, repeat=15):
    """Median milliseconds of a replayed graph of `call`."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for i in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def in_a_row(call, repeat=20):
    """Milliseconds a call of a compiled JAX function, the best of three runs."""
    import jax

    jax.block_until_ready(call())
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(repeat):
            last = call()
        jax.block_until_ready(last)
        best = min(best, (time.perf_counter() - begin) / repeat * 1e3)
    return best


# --- rivals: (family, size) -> [(direction, milliseconds)] ------------------------


def fla(family, size):
    """flash-linear-attention: its backward is forward and backward less forward."""
    os.environ.setdefault("FLA_FLASH_QLA", "0")
    import torch

    name = {
        "gdn": "gated_delta_rule.chunk_gated_delta_rule",
        "kda": "kda.chunk_kda",
        "gdn2": "gdn2.chunk_gdn2",
    }[family]
    module, function = name.rsplit(".", 1)
    chunk = getattr(importlib.import_module("fla.ops." + module), function)
    x = torch_inputs(family, size)
    forward = replayed(lambda: chunk(**x))
    yield "forward", forward
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    do = torch.randn_like(x["v"])

    def both():
        o = chunk(**leaves)[0]
        torch.autograd.grad(o, list(leaves.values()), do)

    yield "backward", replayed(both) - forward


def flash_qla(family, size):
    """FlashQLA: its backward is given A and the cumulated decay of its forward."""
    import torch

    rule = importlib.import_module("flash_qla")
    x = torch_inputs(family, size)
    q, k, v, g, beta = (x[n] for n in ("q", "k", "v", "g", "beta"))
    scale = size[3] ** -0.5
    run = rule.chunk_gated_delta_rule_fwd
    yield "forward", replayed(lambda: run(q, k, v, g, beta, scale=scale))
    kept = run(q, k, v, g, beta, scale=scale, enable_fwd_cp_cache=True, is_train=True)
    summed, A, o, cache = kept[0], kept[1], kept[2], kept[5]
    do = torch.randn_like(o)
    back = rule.chunk_gated_delta_rule_bwd
    yield (
        "backward",
        replayed(
            lambda: back(q, k, v, summed, beta, A, do, scale=scale, cp_cache=cache)
        ),
    )


def cudnn(family, size):
    """cuDNN-frontend's KDA for compute capability 9.0."""
    import torch

    hopper = "cudnn.linear_attention.hopper."
    ahead = importlib.import_module(hopper + "cuda_host")
    back = importlib.import_module(hopper + "cuda_bwd_host")
    x = torch_inputs(family, size)
    B, T, H, D = size
    z = torch.zeros(B, H, D, D, device="cuda")
    state = torch.empty_like(z)
    o = torch.empty_like(x["v"])
    lengths = torch.arange(0, B * T + 1, T, device="cuda", dtype=torch.int32)

    def at(*tensors):
        return [t.data_ptr() for t in tensors]

    inputs = [x[n] for n in ("q", "k", "v", "g", "beta")]

    def stream():
        return torch.cuda.current_stream().cuda_stream

    yield (
        "forward",
        replayed(
            lambda: ahead.launch(
                0, stream(), *at(*inputs, lengths, z, o, state), B * T, B, H
            )
        ),
    )
    workspace = torch.empty(
        back.workspace_bytes(B * T, H, B), device="cuda", dtype=torch.uint8
    )
    do = torch.randn_like(o)
    gradients = [torch.empty_like(t) for t in (*inputs, z)]
    yield (
        "backward",
        replayed(
            lambda: back.launch(
                0,
                stream(),
                *at(workspace, do, *inputs, lengths, z, z, *gradients),
                B * T,
                H,
                B,
            )
        ),
    )


def flashinfer(family, size):
    """FlashInfer's prefill: the decay itself, packed sequences, no backward."""
    import torch

    prefill = importlib.import_module("flashinfer.gdn_prefill")
    x = torch_inputs(family, size)
    B, T, H, D = size
    flat = {n: t.reshape(B * T, *t.shape[2:]) for n, t in x.items()}
    lengths = torch.arange(0, B * T + 1, T, device="cuda", dtype=torch.int64)
    decay = flat["g"].exp()
    yield (
        "forward",
        replayed(
            lambda: prefill.chunk_gated_delta_rule(
                flat["q"],
                flat["k"],
                flat["v"],
                decay,
                flat["beta"],
                D**-0.5,
                None,
                True,
                lengths,
            )
        ),
    )


def jla(family, size):
    """jax-linear-attention: its backward is forward and backward less forward."""
    import jax
    import jax.numpy as jnp

    name = {"gdn": "gated_delta_rule", "kda": "kda", "gdn2": "gdn2"}[family]
    rule = getattr(importlib.import_module("jla.ops.mosaic_gpu." + name), name)
    x = jax_inputs(family, size)

    @jax.jit
    def ahead(*x):
        return rule(*x)[0]

    @jax.jit
    def both(do, *x):
        return jax.vjp(lambda *y: rule(*y)[0], *x)[1](do)

    forward = in_a_row(lambda: ahead(*x))
    yield "forward", forward
    do = jax.random.normal(jax.random.PRNGKey(2), x[2].shape).astype(jnp.bfloat16)
    yield "backward", in_a_row(lambda: both(do, *x)) - forward


# name: (package, families, function, not the whole recurrence)
RIVALS = {
    "FLA": ("fla-core", ("gdn", "kda", "gdn2"), fla, False),
    "FlashQLA": ("flash-qla", ("gdn",), flash_qla, True),
    "cuDNN": ("nvidia-cudnn-frontend", ("kda",), cudnn, True),
    "FlashInfer": ("flashinfer-python", ("gdn",), flashinfer, False),
    "JLA": ("jax-linear-attention", ("gdn", "kda", "gdn2"), jla, False),
}


def version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def ours(bench, family, shape):
    """Rows of carve-cuda-bench, and its first line."""
    out = subprocess.run(
        [bench, "--family", family, "--shape", shape],
        capture_output=True,
        text=True,
        check=False,
    )
    if out.returncode == 77:
        print("skipped: no CUDA device")
        sys.exit(77)
    if out.returncode:
        sys.exit(f"{bench}: {out.stderr or out.stdout}")
    head, *rows = out.stdout.splitlines()
    found = {}
    for row in rows:
        match = re.match(
            r"\S+ +(forward|backward) .* ([\d.]+) ns  floor +([\d.]+) .*[\d]$", row
        )
        if match:
            found[match[1]] = (float(match[2]), float(match[3]))
    return head, found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", nargs="?", default="build/bin/carve-cuda-bench")
    parser.add_argument("--only", help="rivals, with commas between them")
    parser.add_argument("--shape", nargs="*", default=SHAPES, metavar="BxTxHxD")
    parser.add_argument("--output", metavar="FILE")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(RIVALS)
    unknown = set(names) - set(RIVALS)
    if unknown:
        parser.error(f"expected some of {', '.join(RIVALS)}, got {unknown.pop()}")

    lines, missing = [], {}

    def write(head):
        if not options.output:
            return
        with open(options.output, "w") as file:
            file.write(f"# {head}\n# {datetime.date.today()}\n")
            for name in names:
                version = version_of(RIVALS[name][0])
                if version:
                    file.write(f"# {RIVALS[name][0]} {version}\n")
            for (name, where), why in missing.items():
                file.write(f"# {name} {where}: {why}\n")
            for line in lines:
                file.write("{} {} {} {} {:.3f}\n".format(*line))

    for family in ("gdn", "kda", "gdn2", "carve"):
        for shape in options.shape:
            head, own = ours(options.bench, family, shape)
            size = tuple(map(int, shape.split("x")))
            for direction, (ns, floor) in own.items():
                lines.append((family, direction, shape, "carve", ns))
                lines.append((family, direction, shape, "floor", floor))
            for name in names:
                package, families, run, cut = RIVALS[name]
                if family not in families:
                    continue
                if version_of(package) is None:
                    missing[name, "everywhere"] = "not installed"
                    continue
                try:
                    for direction, ms in run(family, size):
                        ns = ms * 1e6 / (size[0] * size[1] * size[2])
                        lines.append((family, direction, shape, name, ns))
                        write(head)  # whatever ends this call
                        mine = own[direction][0]
                        print(
                            f"{family:5}{direction:10}{shape:16}{name:11}{ns:8.3f}"
                            f"  carve {mine:7.3f}  ratio {mine / ns:5.2f}"
                            f"{' *' if cut else ''}",
                            flush=True,
                        )
                except Exception as error:  # a rival that does not run is told
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                    missing[name, f"{family} {shape}"] = why[:200]
            write(head)
    for (name, where), why in missing.items():
        print(f"{name} {where}: {why}")


if __name__ == "__main__":
    main()
