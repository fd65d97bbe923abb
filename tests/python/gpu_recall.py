"""Which layer recalls best?  Multi-query associative recall: a sequence of key
and value tokens, then the keys again in another order; the model has to say
the value of each.

    python gpu_recall.py [--seeds 5] [--steps 800] [--seconds 280]

Two blocks (layer, SwiGLU) of width 128; the width of the SwiGLU is what makes
all models equal in parameters.  Prints the accuracy of each layer on fresh
sequences: mean over the seeds and half the width of its 95% interval.
"""

import argparse
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
WIDTH, HEADS, SIZE, BLOCKS, VOCABULARY = 128, 2, 64, 2, 512
#: Student's t, 95%, of 1, 2, ... degrees of freedom.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def sequences(count, pairs, device, generator):
    """Tokens, and the values to be said where a key is asked for (else -100)."""
    half = VOCABULARY // 2
    draw = lambda: torch.rand(count, half - 1, generator=generator, device=device)
    keys = 1 + draw().argsort(1)[:, :pairs]
    values = half + torch.randint(
        half, (count, pairs), generator=generator, device=device
    )
    order = torch.rand(count, pairs, generator=generator, device=device).argsort(1)
    context = torch.stack([keys, values], 2).flatten(1)
    asked = keys.gather(1, order)
    filler = torch.zeros_like(asked)
    tokens = torch.cat([context, torch.stack([asked, filler], 2).flatten(1)], 1)
    answers = values.gather(1, order)
    none = torch.full_like(context, -100)
    said = torch.stack([answers, torch.full_like(answers, -100)], 2).flatten(1)
    return tokens, torch.cat([none, said], 1)


class Block(torch.nn.Module):
    def __init__(self, layer, inner):
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(WIDTH) for _ in range(2))
        self.memory = layer(WIDTH, HEADS, SIZE)
        self.up = torch.nn.Linear(WIDTH, 2 * inner, bias=False)
        self.down = torch.nn.Linear(inner, WIDTH, bias=False)

    def forward(self, x):
        x = x + self.memory(self.norms[0](x))
        a, b = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(a) * b)


class Model(torch.nn.Module):
    def __init__(self, layer, inner):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = torch.nn.Sequential(*[Block(layer, inner) for _ in range(BLOCKS)])
        self.norm = torch.nn.RMSNorm(WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


def count(module):
    return sum(p.numel() for p in module.parameters())


def inner_widths():
    """Of the SwiGLU by layer, so that every model has as many parameters."""
    with torch.device("meta"):
        of = {name: count(layer(WIDTH, HEADS, SIZE)) for name, layer in LAYERS.items()}
    most = max(of.values()) + 3 * WIDTH * 2 * WIDTH
    return {name: round((most - n) / (3 * WIDTH)) for name, n in of.items()}


def accuracy_of(name, inner, seed, steps, pairs, device):
    torch.manual_seed(seed)
    model = Model(LAYERS[name], inner).to(device)
    generator = torch.Generator(device).manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=2e-3, weight_decay=0.1, fused=device == "cuda"
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=steps, pct_start=0.1
    )
    for _ in range(steps):
        tokens, said = sequences(64, pairs, device, generator)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), said.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    generator.manual_seed(7)
    with torch.no_grad(), torch.autocast(
        device, torch.bfloat16, enabled=device == "cuda"
    ):
        tokens, said = sequences(256, pairs, device, generator)
        found = model(tokens).argmax(-1)
    asked = said != -100
    return float((found == said)[asked].float().mean()), loss.item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--device", default="cuda")
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: nothing was run")
        return 77
    start = time.time()
    widths = inner_widths()
    found = {name: [] for name in LAYERS}
    # Seed by seed, so that a run that ends early has as many of each.
    for seed in range(a.seeds):
        for name in LAYERS:
            if time.time() - start > a.seconds:
                break
            value, loss = accuracy_of(
                name, widths[name], seed, a.steps, a.pairs, a.device
            )
            found[name].append(value)
            print(
                f"{name} seed {seed}: accuracy {value:.4f}, loss {loss:.3f}, "
                f"{time.time() - start:.0f} s",
                flush=True,
            )
    print(f"\n{a.pairs} pairs, {a.steps} steps of 64 sequences")
    print("| layer | parameters | seeds | accuracy | +- (95%) |\n|---|---|---|---|---|")
    for name, values in found.items():
        with torch.device("meta"):
            size = count(Model(LAYERS[name], widths[name]))
        n = len(values)
        wide = "-"
        if n > 1:
            wide = f"{STUDENT[n - 2] * statistics.stdev(values) / n**0.5:.4f}"
        mean = f"{statistics.mean(values):.4f}" if n else "-"
        print(f"| {name} | {size:,} | {n} | {mean} | {wide} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
