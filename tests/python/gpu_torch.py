"""What do the operators cost on a GPU, and are they right there?

    python gpu_torch.py [--seconds N] [--layers-only]

Prints: errors of every family against the compiled reference, opcheck, replay
of a CUDA graph, host time of a call, forward and backward beside FLA's where
that can be imported, and time and peak memory of a training step of a CARVE
layer and of a GDN-2 layer.  Exit code 77 without a GPU, 1 where a check fails.
"""

import argparse
import statistics
import sys
import time

import torch

import carve.torch as ct
from carve.torch import _native, nn

FAMILIES = {
    "delta": (ct.chunk_delta_rule, "q k v beta"),
    "gdn": (ct.chunk_gated_delta_rule, "q k v g beta"),
    "kda": (ct.chunk_kda, "q k v g beta"),
    "gdn2": (ct.chunk_gdn2, "q k v g b w"),
    "carve": (ct.chunk_carve, "q k v g b w w_down w_up"),
}
#: Relative RMS error allowed, over the rounding of bf16 results alone (1.7e-3).
ALLOWED = 1.5e-2
failures = []


def inputs(family, B, T, H, D, device="cuda", seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    normal = lambda *s: torch.randn(s, generator=generator)
    unit = torch.nn.functional.normalize
    by_channel = family not in ("gdn", "delta")
    shapes = {
        "q": (B, T, H, D),
        "k": (B, T, H, D),
        "v": (B, T, H, D),
        "g": (B, T, H, D) if by_channel else (B, T, H),
        "beta": (B, T, H),
        "b": (B, T, H, D),
        "w": (B, T, H) if family == "carve" else (B, T, H, D),
        "w_down": (H, 16, D),
        "w_up": (H, D, 16),
    }
    x = {n: normal(*shapes[n]) for n in FAMILIES[family][1].split()}
    x["q"], x["k"] = unit(x["q"], dim=-1), unit(x["k"], dim=-1)
    for n in ("beta", "w") + (() if family == "carve" else ("b",)):
        if n in x:
            x[n] = x[n].sigmoid()
    if "g" in x:
        x["g"] = -torch.nn.functional.softplus(x["g"]) / 4
    if family == "carve":
        x["w_down"] /= D**0.5
    wide = ("g", "w_down", "w_up")
    return {
        n: (a if n in wide else a.bfloat16()).to(device).requires_grad_()
        for n, a in x.items()
    }


def expect(condition, what):
    print(f"{'ok  ' if condition else 'FAIL'} {what}", flush=True)
    if not condition:
        failures.append(what)


def relative(found, exact):
    exact = exact.double().cpu()
    return float((found.double().cpu() - exact).norm() / exact.norm())


def right(family):
    """o, the state and all gradients against the reference on the CPU."""
    fn, _ = FAMILIES[family]
    on = inputs(family, 1, 200, 2, 128)
    off = {n: a.detach().double().cpu().requires_grad_() for n, a in on.items()}
    both = []
    for x in (on, off):
        o, state = fn(**x, output_final_state=True)
        cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
        cotangent = cotangent.bfloat16().to(o)
        grads = torch.autograd.grad(o, list(x.values()), cotangent)
        both.append({"o": o, "final_state": state, **dict(zip(x, grads))})
    errors = {n: relative(both[0][n].detach(), both[1][n].detach()) for n in both[0]}
    worst = max(errors, key=errors.get)
    kernel = ct.kernel(family, T=200, H=2, backward=True)
    expect(
        errors[worst] < ALLOWED,
        f"{family}: worst relative error {errors[worst]:.1e} in {worst} ({kernel})",
    )


def checked(family):
    x = inputs(family, 1, 64, 1, 64)
    rows = [x.get(n) for n in ct._operators.DIFFERENTIABLE]
    window = 64 if family == "carve" else 0
    # Sums of fp32 gradients in another order are another number.
    found = torch.library.opcheck(
        torch.ops.carve.forward.default, (family, *rows, None, 0.5, window, True)
    )
    expect(set(found.values()) == {"SUCCESS"}, f"{family}: opcheck {found}")


def graphed(family):
    fn, _ = FAMILIES[family]
    x = inputs(family, 1, 512, 2, 128)

    def step():
        o, _ = fn(**x)
        return o, torch.autograd.grad(o, list(x.values()), torch.ones_like(o))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            o, grads = step()
    torch.cuda.current_stream().wait_stream(side)
    plain = [o.detach().clone(), *(g.clone() for g in grads)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, grads = step()
    for t in (o.detach(), *grads):
        t.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    same = [relative(a, b) for a, b in zip((o.detach(), *grads), plain)]
    expect(max(same) < 1e-6, f"{family}: graph replay, difference {max(same):.1e}")


def host_time(call, calls=300):
    """Microseconds of the host a call; the device does far less than that."""
    for _ in range(20):
        call()
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
        torch.cuda.synchronize()
    return statistics.median(times)


def overhead(family):
    fn, _ = FAMILIES[family]
    x = {n: a.detach() for n, a in inputs(family, 1, 16, 1, 64).items()}
    rows = [x.get(n) for n in ct._operators.DIFFERENTIABLE]
    window = 64 if family == "carve" else 0
    named = {n: x.get(n) for n in _native.ROWS}
    down, up = x.get("w_down"), x.get("w_up")
    call = _native.call_of(family, named, None, None, 0.5, window, down, up)
    o, state, means = torch.ops.carve.forward(family, *rows, None, 0.5, window, False)
    room = call.workspace("forward", o.device)
    stream = torch.cuda.current_stream().cuda_stream
    out = call.outputs
    lib = _native.library()
    from ctypes import byref

    p, results = byref(call.problem), byref(out)
    bare = host_time(
        lambda: lib.carve_cuda_forward(
            p, results, room.data_ptr(), room.numel(), stream
        )
    )
    with torch.no_grad():
        operator = host_time(
            lambda: torch.ops.carve.forward(
                family, *rows, None, 0.5, window, False
            )
        )
        whole = host_time(lambda: fn(**x))
    print(
        f"| {family} | {bare:.1f} | {operator:.1f} | {operator - bare:.1f} "
        f"| {whole:.1f} |",
        flush=True,
    )


def device_time(call, repeats=20):
    """Milliseconds a call, median."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def with_gradients(fn, x):
    def call():
        o = fn(**x)[0]
        torch.autograd.grad(o, list(x.values()), torch.ones_like(o))

    return call


def layers():
    print("\n| layer | parameters | forward, backward, step [ms] | peak [MiB] |")
    print("|---|---|---|---|")
    for B, T in [(4, 4096), (1, 8192)]:
        for layer in (nn.GatedDeltaNet2, nn.Carve):
            torch.manual_seed(0)
            torch.cuda.empty_cache()
            made = layer().cuda()
            optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, fused=True)
            x = torch.randn(B, T, 2048, device="cuda", requires_grad=True)

            def step():
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cuda", torch.bfloat16):
                    loss = made(x).float().square().mean()
                loss.backward()
                optimizer.step()

            step()
            torch.cuda.reset_peak_memory_stats()
            milliseconds = device_time(step)
            peak = torch.cuda.max_memory_allocated() / 2**20
            count = sum(p.numel() for p in made.parameters())
            print(
                f"| {layer.__name__}, B {B}, T {T} | {count:,} | {milliseconds:.2f} "
                f"| {peak:.0f} |",
                flush=True,
            )
            del made, optimizer, x, step


def few_configurations():
    """FLA tunes each kernel over dozens of configurations, minutes of
    compiling; here over at most two."""
    from triton.runtime.autotuner import Autotuner

    every = Autotuner.prune_configs

    def some(self, *args, **kwargs):
        found = every(self, *args, **kwargs)
        common = [c for c in found if c.num_warps == 4] or found
        return common[:2]

    Autotuner.prune_configs = some


def beside_fla(deadline):
    print("\n| family | B,T,H,D | carve [ms] | FLA [ms] | |")
    print("|---|---|---|---|---|")
    theirs = {}
    try:
        few_configurations()
        from fla.ops.delta_rule import chunk_delta_rule
        from fla.ops.gdn2 import chunk_gdn2
        from fla.ops.kda import chunk_kda

        theirs = {"delta": chunk_delta_rule, "kda": chunk_kda, "gdn2": chunk_gdn2}
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        theirs["gdn"] = chunk_gated_delta_rule
    except Exception as e:
        print(f"no FLA: {type(e).__name__}: {e}")
    for family, (fn, _) in FAMILIES.items():
        for shape in [(1, 8192, 16, 128), (8, 4096, 16, 128)]:
            x = inputs(family, *shape)
            ours = device_time(with_gradients(fn, x))
            said, note = "-", ""
            if family in theirs and time.time() < deadline:
                try:
                    said = f"{device_time(with_gradients(theirs[family], x), 10):.3f}"
                except Exception as e:
                    note = f"{type(e).__name__}: {str(e)[:70]}"
            print(
                f"| {family} | {','.join(map(str, shape))} | {ours:.3f} | {said} "
                f"| {note} |",
                flush=True,
            )
            del x
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=150, help="for FLA to begin")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not _native.library().carve_cuda_built():
        print("no GPU, or a library without the kernels: nothing was run")
        return 77
    start = time.time()
    print(torch.cuda.get_device_name(), torch.__version__)
    for check in (right, graphed, checked):
        for family in FAMILIES:
            try:
                check(family)
            except Exception as e:
                expect(False, f"{family}: {check.__name__}: {type(e).__name__}: {e}")
    print("\n| family | kernels' own call [us] | operator | added | function |")
    print("|---|---|---|---|---|")
    for family in FAMILIES:
        overhead(family)
    layers()
    beside_fla(start + arguments.seconds)
    print(f"{len(failures)} checks failed, {time.time() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
