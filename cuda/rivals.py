"""How do the kernels stand beside those of others, on one card, in one run?

    python3 cuda/rivals.py build/bin/carve-cuda-bench [--shapes BxTxHxD ...]
                                                     [--only NAME ...]
    python3 cuda/rivals.py --page cuda/results/FILE.txt > docs/gpu.md

The first (also `carve-cuda-bench --rivals`) times whatever of FLA, FlashQLA,
FlashInfer and cuDNN-frontend can be imported: median of replays of a CUDA
graph, so that no host time counts; backward is timed alone where the rival
lets it, else as forward and backward less forward.  The second makes the page
of what the first printed.  Times are ns per token and value head.
"""
import argparse
import pathlib
import re
import statistics
import subprocess
import sys

SHAPES = ["8x4096x16x128", "4x2048x32x128", "1x8192x16x128"]


def median_ms(call, repeats=15):
    import torch
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def inputs(family, B, T, H, D):
    import torch
    generator = torch.Generator(device="cuda").manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, device="cuda", generator=generator)
    q, k = (torch.nn.functional.normalize(normal(B, T, H, D), dim=-1).bfloat16()
            for _ in range(2))
    v = normal(B, T, H, D).bfloat16()
    beta = torch.sigmoid(normal(B, T, H))
    logits = normal(B, T, H, D) if family == "kda" else normal(B, T, H)
    g = -0.1 * torch.nn.functional.softplus(logits)
    return q, k, v, g, beta, normal(B, T, H, D).bfloat16()


def fla(family, *shape):
    """FLA (Triton), forward and backward through autograd."""
    import torch
    if family == "kda":
        from fla.ops.kda import chunk_kda as op
    else:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule as op
    *x, d_o = inputs(family, *shape)
    x[4] = x[4].bfloat16()

    def forward():
        with torch.no_grad():
            op(*x, output_final_state=True)
    leaves = [y.detach().requires_grad_() for y in x]

    def both():
        o, _ = op(*leaves, output_final_state=True)
        torch.autograd.grad(o, leaves, d_o)
    ahead = median_ms(forward)
    return ahead, median_ms(both) - ahead


def flashqla(family, *shape):
    """FlashQLA; its backward keeps A and the cumulated decay."""
    from flash_qla import (chunk_gated_delta_rule_bwd,
                           chunk_gated_delta_rule_fwd)
    if family != "gdn":
        raise ImportError("one decay a head")
    *x, d_o = inputs(family, *shape)
    scale = shape[3] ** -0.5
    g, A, _, _, _, cache = chunk_gated_delta_rule_fwd(
        *x, scale=scale, enable_fwd_cp_cache=True, is_train=True)
    return (median_ms(lambda: chunk_gated_delta_rule_fwd(*x, scale=scale)),
            median_ms(lambda: chunk_gated_delta_rule_bwd(
                x[0], x[1], x[2], g, x[4], A, d_o, scale=scale,
                cp_cache=cache)))


def flashinfer(family, B, T, H, D):
    """FlashInfer, forward."""
    import torch
    from flashinfer.gdn_prefill import chunk_gated_delta_rule
    if family != "gdn":
        raise ImportError("one decay a head")
    q, k, v, g, beta, _ = (y.reshape(B * T, *y.shape[2:])
                           for y in inputs(family, B, T, H, D))
    ends = torch.arange(0, B * T + 1, T, device="cuda", dtype=torch.int64)
    a = g.exp()
    return median_ms(lambda: chunk_gated_delta_rule(
        q, k, v, a, beta, D ** -0.5, None, True, ends)), None


def cudnn(family, B, T, H, D):
    """cuDNN-frontend's kernels for sm_90."""
    import torch
    from cudnn.linear_attention.hopper import cuda_bwd_host, cuda_host
    if family != "kda" or D != 128:
        raise ImportError("kda, 128 channels")
    *x, d_o = inputs(family, B, T, H, D)
    o = torch.empty_like(x[2])
    end, start = (torch.zeros(B, H, D, D, device="cuda") for _ in range(2))
    ends = torch.arange(0, B * T + 1, T, device="cuda", dtype=torch.int32)
    grads = [torch.empty_like(y) for y in (*x, start)]
    workspace = torch.empty(cuda_bwd_host.workspace_bytes(B * T, H, B),
                            device="cuda", dtype=torch.uint8)

    def at(*tensors):
        return [y.data_ptr() for y in tensors]

    def stream():
        return torch.cuda.current_stream().cuda_stream
    return (median_ms(lambda: cuda_host.launch(
                0, stream(), *at(*x, ends, start, o, end), B * T, B, H)),
            median_ms(lambda: cuda_bwd_host.launch(
                0, stream(), *at(workspace, d_o, *x, ends, start, start,
                                 *grads), B * T, H, B)))


RIVALS = [("FLA", fla), ("FlashQLA", flashqla), ("FlashInfer", flashinfer),
          ("cuDNN", cudnn)]


def own_rows(bench, shape):
    for direction in ("forward", "backward"):
        out = subprocess.run([bench, "--direction", direction, "--shape",
                              shape], check=True, capture_output=True,
                             text=True).stdout
        for line in out.splitlines():
            row = re.match(r"(\w+) +(\w+) +\S+ +\w+ +\S+ ms +(\S+) ns +"
                           r"floor +(\S+)", line)
            if row and "means" not in line:
                yield row[1], row[2], float(row[3]), float(row[4])


def measure(bench, shapes, names):
    import importlib.metadata
    import torch
    print(f"card: {torch.cuda.get_device_name()}")
    print("date: " + subprocess.run(["date", "-I"], capture_output=True,
                                    text=True).stdout.strip())
    for package in ("fla-core", "flash-qla", "flashinfer-python",
                    "nvidia-cudnn-frontend", "torch", "triton"):
        try:
            print(f"{package}: {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package}: not there")
    print("family direction shape carve floor rival time ratio")
    for shape in shapes:
        theirs = {}
        B, T, H, D = map(int, shape.split("x"))
        for family in ("gdn", "kda"):
            for name, run in RIVALS:
                if name not in names:
                    continue
                try:
                    ms = run(family, B, T, H, D)
                except ImportError:
                    continue
                except Exception as e:  # a rival's fault is not the table's
                    print(f"# {name} {family} {shape}: {type(e).__name__} "
                          f"{str(e).splitlines()[0][:90] if str(e) else ''}")
                    continue
                for direction, x in zip(("forward", "backward"), ms):
                    if x is not None:
                        theirs.setdefault((family, direction), []).append(
                            (name, x * 1e6 / (B * T * H)))
        for family, direction, ns, floor in own_rows(bench, shape):
            for name, other in theirs.get((family, direction), [("-", 0)]):
                ratio = f"{ns / other:.3f}" if other else "-"
                print(f"{family} {direction} {shape} {ns:.3f} {floor:.3f} "
                      f"{name} {other:.3f} {ratio}", flush=True)


def page(files):
    print("# Beside other kernels {#gpu}\n")
    print("Times are ns per token and value head, bf16, of one run on one "
          "card each; the\nratio is carve's time by the other's, so below 1 "
          "carve is faster. Floor: every input\nread and every output written "
          "once. Rivals are replays of a CUDA graph. Made by\n`cuda/rivals.py "
          "--page` of the files in `cuda/results`.")
    for file in files:
        lines = pathlib.Path(file).read_text().splitlines()
        head = dict(l.split(": ", 1) for l in lines
                    if re.match(r"[\w-]+: ", l))
        there = ", ".join(f"{k} {v}" for k, v in head.items()
                          if k not in ("card", "date") and v != "not there")
        print(f"\n## {head['card']}, {head['date']}\n\n{there}.")
        gone = [k for k, v in head.items() if v == "not there"]
        if gone:
            print("Not there, so not in the table: " + ", ".join(gone) + ".")
        rows = [l.split() for l in lines if len(l.split()) == 8
                and l.split()[7] != "ratio"]
        for title, keep in (
                ("Where carve wins", lambda r: r != "-" and float(r) < 1),
                ("Where it loses", lambda r: r != "-" and float(r) >= 1),
                ("Without a rival here", lambda r: r == "-")):
            chosen = [r for r in rows if keep(r[7])]
            print(f"\n### {title}\n")
            if not chosen:
                print("Nothing beside the rivals of this run; `cuda/NOTES.md` has "
                      "earlier runs\nbeside others, some of them faster.")
                continue
            rival = title[-4:] != "here"
            print("| family | pass | BxTxHxD | carve | by its floor |"
                  + (" rival | its time | ratio |" if rival else ""))
            print("|---|---|---|--:|--:|" + ("---|--:|--:|" if rival else ""))
            for r in chosen:
                print(f"| {r[0]} | {r[1]} | {r[2]} | {r[3]} | "
                      f"{float(r[3]) / float(r[4]):.2f} |"
                      + (f" {r[5]} | {r[6]} | {r[7]} |" if rival else ""))
        for line in lines:
            if line.startswith("# "):
                print(f"\nNot measured: {line[2:]}.")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--only", nargs="+", default=[r[0] for r in RIVALS],
                        help="rivals to time")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.page:
        page(given.files)
    else:
        measure(given.files[0], given.shapes, given.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
