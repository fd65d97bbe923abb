"""Which layer learns best?  GDN-2, CARVE, KDA and GDN in models of equal size.

    python gpu_learn.py recall text --corpus FILE [--steps N] [--seconds N]

recall  Multi-query associative recall: a sequence of key and value tokens, then
        the keys again in another order; the model has to say the value of each.
        Accuracy on fresh sequences.
text    The next byte of a text; bits a byte on its last tenth.

A model is blocks of the layer and a SwiGLU, whose width is what makes all
models equal in parameters.  All seeds of a layer train at once, their steps
being one CUDA graph (on a CPU one after the other).  Prints of each task and
layer the mean over the seeds and half the width of its 95% interval.
"""

import argparse
import math
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from carve.torch import nn

LAYERS = {
    "GDN-2": nn.GatedDeltaNet2,
    "CARVE": nn.Carve,
    "KDA": nn.KimiDeltaAttention,
    "GDN": nn.GatedDeltaNet,
}
#: Student's t, 95%, of 1, 2, ... degrees of freedom.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
#: What is not asked for.
NOTHING = -100


class Recall:
    """Keys are tokens below half of the vocabulary, values the others."""

    vocabulary, unit = 512, "accuracy"

    def __init__(self, options, device):
        self.pairs, self.device = options.pairs, device

    def batch(self, count, generator=None):
        """Tokens [count, 3 pairs], and the value asked for at each (or
        NOTHING)."""
        half, pairs = self.vocabulary // 2, self.pairs
        how = {"generator": generator, "device": self.device}
        draw = lambda n: torch.rand(count, n, **how)
        keys = draw(half).argsort(1)[:, :pairs]
        values = half + torch.randint(half, (count, pairs), **how)
        order = draw(pairs).argsort(1)
        tokens = torch.cat(
            [torch.stack([keys, values], 2).flatten(1), keys.gather(1, order)], 1
        )
        asked = torch.full_like(tokens, NOTHING)
        asked[:, 2 * pairs :] = values.gather(1, order)
        return tokens, asked

    def tests(self):
        generator = torch.Generator(self.device).manual_seed(7)
        return [self.batch(256, generator) for _ in range(4)]

    @staticmethod
    def measure(logits, asked):
        known = asked != NOTHING
        return (logits.argmax(-1) == asked)[known].float()


class Text:
    """Bytes of a file."""

    vocabulary, unit = 256, "bits a byte"

    def __init__(self, options, device):
        content = bytearray(pathlib.Path(options.corpus).read_bytes())
        everything = torch.frombuffer(content, dtype=torch.uint8).to(device)
        part = len(everything) // 10
        self.known, self.held_out = everything[:-part], everything[-part:]
        self.length = options.length

    def batch(self, count):
        """Bytes [count, length], and the one after each."""
        start = torch.randint(
            len(self.known) - self.length, (count, 1), device=self.known.device
        )
        at = start + torch.arange(self.length + 1, device=start.device)
        found = self.known[at].long()
        return found[:, :-1], found[:, 1:]

    def tests(self):
        n = self.length
        rows = self.held_out[: (len(self.held_out) - 1) // n * n + 1].long()
        said = rows[1:].view(-1, n)
        return list(zip(rows[:-1].view(-1, n).split(256), said.split(256)))

    @staticmethod
    def measure(logits, asked):
        nats = F.cross_entropy(
            logits.float().flatten(0, 1), asked.flatten(), reduction="none"
        )
        return nats / math.log(2)


TASKS = {"recall": Recall, "text": Text}


class Block(torch.nn.Module):
    def __init__(self, layer, options, inner):
        super().__init__()
        width = options.width
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(width) for _ in range(2))
        self.memory = layer(width, options.heads, options.head_dim)
        self.up = torch.nn.Linear(width, 2 * inner, bias=False)
        self.down = torch.nn.Linear(inner, width, bias=False)

    def forward(self, x):
        x = x + self.memory(self.norms[0](x))
        a, b = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(a) * b)


class Model(torch.nn.Module):
    def __init__(self, layer, vocabulary, options, inner):
        super().__init__()
        width = options.width
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.blocks = torch.nn.Sequential(
            *[Block(layer, options, inner) for _ in range(options.blocks)]
        )
        self.norm = torch.nn.RMSNorm(width)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


def count(module):
    return sum(p.numel() for p in module.parameters())


def inner_widths(options):
    """Of the SwiGLU by layer, so that every model has as many parameters."""
    width = options.width
    with torch.device("meta"):
        of = {
            name: count(layer(width, options.heads, options.head_dim))
            for name, layer in LAYERS.items()
        }
    most = max(of.values()) + 3 * width * 2 * width
    return {name: round((most - n) / (3 * width)) for name, n in of.items()}


def rate(step, steps, highest):
    """Of learning: up for a tenth of the steps, then down along a cosine."""
    warm = max(1, steps // 10)
    if step < warm:
        return highest * (step + 1) / warm
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def narrow(device):
    """bf16 where a matrix product takes less time in it."""
    return torch.autocast(
        device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False
    )


def trained(models, task, options, device):
    """Trains the models, each on data of its own, and returns their losses in the
    last step."""
    on_gpu = device == "cuda"
    learning = torch.zeros((), device=device) if on_gpu else 0.0
    optimizers = [
        torch.optim.AdamW(
            m.parameters(),
            lr=learning,
            weight_decay=0.1,
            betas=(0.9, 0.95),
            fused=on_gpu,
            capturable=on_gpu,
        )
        for m in models
    ]
    losses = [torch.zeros((), device=device) for _ in models]

    def one(i):
        tokens, asked = task.batch(options.batch)
        with narrow(device):
            logits = models[i](tokens)
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), asked.flatten(), ignore_index=NOTHING
        )
        optimizers[i].zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(models[i].parameters(), 1.0)
        optimizers[i].step()
        losses[i].copy_(loss.detach())

    streams = [torch.cuda.Stream() if on_gpu else None for _ in models]

    def step():
        here = torch.cuda.current_stream() if on_gpu else None
        for i, stream in enumerate(streams):
            if not on_gpu:
                one(i)
                continue
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                one(i)
        for stream in streams if on_gpu else ():
            here.wait_stream(stream)

    graph = None
    for n in range(options.steps):
        value = rate(n, options.steps, options.rate)
        if on_gpu:
            learning.fill_(value)
        else:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = value
        if graph is not None:
            graph.replay()
        elif on_gpu and n == 3:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            graph.replay()
        else:
            step()
        if options.talk and n % options.talk == 0:
            print(n, [f"{float(loss):.3f}" for loss in losses], flush=True)
    return [float(loss) for loss in losses]


@torch.no_grad()
def measured(model, task, device):
    """The mean of the task's measure over its tests."""
    found = []
    for tokens, asked in task.tests():
        with narrow(device):
            logits = model(tokens)
        found.append(task.measure(logits, asked).flatten())
    return float(torch.cat(found).mean())


def interval(values) -> str:
    """Half the width of the mean's 95% interval."""
    n = len(values)
    if n < 2:
        return "-"
    return f"{STUDENT[n - 2] * statistics.stdev(values) / n**0.5:.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--corpus", help="a file for the task text")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="of a text")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="to begin in")
    parser.add_argument("--talk", type=int, default=0, help="losses every N steps")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if "text" in options.tasks and not options.corpus:
        parser.error("text: --corpus FILE is needed")
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU: nothing was run")
        return 77
    start = time.time()
    widths = inner_widths(options)
    print(
        f"{options.blocks} blocks, width {options.width}, {options.heads} heads of "
        f"{options.head_dim}, {options.steps} steps of {options.batch} sequences, "
        f"rate {options.rate}, {options.pairs} pairs, texts of {options.length}",
        flush=True,
    )
    for name in options.tasks:
        task = TASKS[name](options, device)
        rows = []
        for layer in options.layers:
            if time.time() - start > options.seconds:
                print(f"{name}, {layer}: not begun", flush=True)
                continue
            begun = time.time()
            models = []
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                made = Model(LAYERS[layer], task.vocabulary, options, widths[layer])
                models.append(made.to(device))
            torch.manual_seed(1000)  # the same data for every layer
            losses = trained(models, task, options, device)
            values = [measured(m, task, device) for m in models]
            seconds = time.time() - begun
            print(
                f"{name}, {layer}: {' '.join(f'{v:.4f}' for v in values)}; last "
                f"losses {' '.join(f'{x:.3f}' for x in losses)}; {seconds:.0f} s",
                flush=True,
            )
            rows.append(
                f"| {layer} | {count(models[0]):,} | {len(values)} "
                f"| {statistics.mean(values):.4f} | {interval(values)} |"
            )
        print(f"\n| {name} | parameters | seeds | {task.unit} | +- (95%) |")
        print("|---|---|---|---|---|")
        print("\n".join(rows) + "\n", flush=True)
    print(f"{time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
