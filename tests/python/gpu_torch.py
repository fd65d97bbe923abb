"""What do the operators cost on a GPU, and are they right there?

    python gpu_torch.py [PART...] [--seconds N]

Prints: errors of every family against the compiled reference, opcheck, replay
of a CUDA graph, host time of a call, time and peak memory of a training step of
a CARVE layer and of a GDN-2 layer, models of FLA and of transformers run both
ways, and forward and backward beside FLA's, where these can be imported.  Exit code 77 without a GPU, 1 where a check fails.
"""

import argparse
import importlib
import statistics
import sys
import time

import torch

import carve.torch as ct
import families
from carve.torch import _native, _operators, nn
from clients import both_ways, relative, tiny_qwen3_next
from families import FAMILIES

#: Relative error allowed, over the rounding of bf16 results alone (1.7e-3).
ALLOWED = 1.5e-2
#: The same of a whole model, whose other layers round too.
ALLOWED_OF_MODEL = 3e-2
#: Microseconds that an operator may add to its kernels' own call.
ADDED = 10
failures = []


def inputs(family, B, T, H, D):
    return families.inputs(
        family, torch.bfloat16, B=B, T=T, H=H, K=D, rank=16, device="cuda"
    )


def expect(condition, what):
    print(f"{'ok  ' if condition else 'FAIL'} {what}", flush=True)
    if not condition:
        failures.append(what)


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
    rows = [x.get(n) for n in _native.INPUTS]
    window = 64 if family == "carve" else 0
    arguments = (family, *rows, None, 0.5, window, True)
    o, state, means = torch.ops.carve.forward(*arguments)
    plain = [None if r is None else r.detach() for r in rows]
    one = [None if r is None else r[:, :1] for r in plain[:7]]
    calls = {
        "forward": arguments,
        "backward": (
            *(family, *plain, None, 0.5, window, o.detach(), None, means.detach()),
            [r is not None for r in rows],
        ),
        "decode": (family, *one, state.detach().clone(), 0.5),
    }
    for name, arguments in calls.items():
        found = torch.library.opcheck(
            getattr(torch.ops.carve, name).default, arguments
        )
        expect(set(found.values()) == {"SUCCESS"}, f"{family}: opcheck of {name} {found}")


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


def host_time(call, calls=100):
    """Microseconds of the host a call; the device does far less than that."""
    for _ in range(20):
        call()
    times = []
    for _ in range(9):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
        torch.cuda.synchronize()
    return statistics.median(times)


def overhead(family):
    """What a call takes of the host beyond that of the C interface."""
    fn, _ = FAMILIES[family]
    x = inputs(family, 1, 16, 1, 64)
    plain = {n: a.detach() for n, a in x.items()}
    rows = [plain.get(n) for n in _native.INPUTS]
    window = 64 if family == "carve" else 0
    call, _ = _native.call_of(family, rows, None, 0.5, window)
    arguments = (family, *rows, None, 0.5, window)
    o, _, means = _operators.call("forward", *arguments, False)
    d_o = torch.ones_like(o)
    wanted = [r is not None for r in rows]
    stream = torch.cuda.current_stream().cuda_stream
    lib = _native.library()

    def bare(name, results):
        room = call.workspace(name, o, stream)
        run = getattr(lib, f"carve_cuda_{name}")
        at, bytes_ = room.data_ptr(), room.numel()
        return host_time(
            lambda: run(call.by_reference, results, at, bytes_, stream)
        )

    kernels = bare("forward", call.outputs_by_reference)
    back = (d_o, None, means, wanted)
    results = _operators.call("backward", *arguments, *back)  # the addresses
    kernels_back = bare("backward", call.gradients_by_reference)
    del results
    with torch.no_grad():
        function = host_time(lambda: fn(**plain))
        operator = host_time(lambda: torch.ops.carve.forward(*arguments, False))
    with_gradients = host_time(lambda: fn(**x))
    backward = host_time(lambda: _operators.call("backward", *arguments, *back))
    print(
        f"| {family} | {kernels:.1f} | {function - kernels:.1f} "
        f"| {with_gradients - kernels:.1f} | {operator - kernels:.1f} "
        f"| {kernels_back:.1f} | {backward - kernels_back:.1f} |",
        flush=True,
    )
    return function - kernels


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
    try:
        import fla  # noqa: F401
    except ImportError:
        return
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
    for family, module in [
        ("delta", "delta_rule"),
        ("gdn", "gated_delta_rule"),
        ("kda", "kda"),
        ("gdn2", "gdn2"),
    ]:
        name = FAMILIES[family][0].__name__
        try:
            theirs[family] = getattr(importlib.import_module(f"fla.ops.{module}"), name)
        except Exception as e:
            print(f"no {name} of FLA: {type(e).__name__}: {e}")
    for shape in [(1, 8192, 16, 128), (8, 4096, 16, 128)]:
        for family, (fn, _) in FAMILIES.items():
            x = inputs(family, *shape)
            ours = device_time(with_gradients(fn, x))
            said, note = "-", "" if family in theirs else "none"
            if family in theirs and time.time() > deadline:
                note = "not run"
            elif family in theirs:
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


def fla_layer():
    """FLA's own layer, with its kernels, against the same with these."""
    layers = importlib.import_module("fla.layers.gated_deltanet")
    torch.manual_seed(0)
    layer = layers.GatedDeltaNet(hidden_size=256, head_dim=128, num_heads=4, expand_v=1)
    layer = layer.to("cuda", torch.bfloat16)
    x = torch.randn(2, 200, 256, device="cuda", dtype=torch.bfloat16)
    return layer, lambda: layer(x)[0]


def clients():
    for name, make, package in [
        ("FLA's GatedDeltaNet", fla_layer, "fla"),
        (
            "a Qwen3-Next of transformers",
            lambda: tiny_qwen3_next(width=256, device="cuda", dtype=torch.float32),
            "transformers",
        ),
    ]:
        try:
            made = make()
        except ImportError as e:
            print(f"    no {name}: {e}")
            continue
        try:
            differences, calls = both_ways(*made, package, least=1e-3)
        except Exception as e:
            expect(False, f"{name}: {type(e).__name__}: {e}")
            continue
        worst = max(differences, key=differences.get)
        expect(
            {"forward", "backward"} <= set(calls)
            and differences[worst] < ALLOWED_OF_MODEL,
            f"{name}: output {differences['output']:.1e}, worst of "
            f"{len(differences) - 1} gradients {differences[worst]:.1e} in {worst}",
        )


def each_family(check):
    for family in FAMILIES:
        try:
            check(family)
        except Exception as e:
            expect(False, f"{family}: {check.__name__}: {type(e).__name__}: {e}")


def host_times():
    print(
        "\n| host time [us] | forward in C | the function adds | with gradients "
        "| through dispatch | backward in C | adds |\n|---|---|---|---|---|---|---|"
    )
    most = max(overhead(family) for family in FAMILIES)
    x = torch.ones(64, device="cuda")
    print(f"for comparison, x + x takes {host_time(lambda: x + x):.1f} us")
    expect(most < ADDED, f"a function adds at most {most:.1f} us")


#: Parts of the program, in order; those of FLA's take the time until N seconds.
PARTS = {
    "right": lambda until: each_family(right),
    "graph": lambda until: each_family(graphed),
    "opcheck": lambda until: each_family(checked),
    "host": lambda until: host_times(),
    "layers": lambda until: layers(),
    "clients": lambda until: clients(),
    "fla": beside_fla,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--seconds", type=float, default=150, help="for FLA to begin")
    arguments = parser.parse_args()
    if not set(arguments.parts) <= set(PARTS):
        parser.error(f"parts: expected of {', '.join(PARTS)}")
    if not torch.cuda.is_available() or not _native.library().carve_cuda_built():
        print("no GPU, or a library without the kernels: nothing was run")
        return 77
    start = time.time()
    print(torch.cuda.get_device_name(), torch.__version__)
    few_configurations()
    for part in arguments.parts or PARTS:
        PARTS[part](start + arguments.seconds)
    print(f"{len(failures)} checks failed, {time.time() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
