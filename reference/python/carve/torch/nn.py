"""The layers around the operators: projections, short convolutions, gates,
output norm and output gate.  Their parameters are those that the ledger counts
(EFF-1): FLA's GDN-2 layer, and for CARVE the same with one write gate a head
and the content gate.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from . import chunk_carve, chunk_gated_delta_rule, chunk_gdn2, chunk_kda


class ShortConvolution(nn.Conv1d):
    """A causal convolution of each channel along the tokens, then SiLU."""

    def __init__(self, channels: int, length: int):
        super().__init__(channels, channels, length, groups=channels, bias=False)

    def forward(self, x):
        """x [B,T,channels]."""
        padded = F.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0))
        y = F.conv1d(padded, self.weight, groups=self.groups)
        return F.silu(y).transpose(1, 2)


class _Layer(nn.Module):
    """What the layers share: all but the gates of the memory.

    hidden_size  of the tokens
    num_heads    of the memory; each has head_dim key channels and
                 head_dim * expand_v value channels
    conv_size    length of the short convolutions of q, k and v
    """

    #: Whether each key channel has a decay of its own.
    decay_by_channel = True

    def __init__(
        self,
        hidden_size: int = 2048,
        num_heads: int = 16,
        head_dim: int = 128,
        expand_v: float = 1,
        conv_size: int = 4,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.key_size, self.value_size = head_dim, round(head_dim * expand_v)
        if self.value_size != head_dim * expand_v:
            raise ValueError(
                f"expand_v: expected head_dim * expand_v whole, got {head_dim * expand_v}"
            )
        keys, values = num_heads * self.key_size, num_heads * self.value_size
        linear = lambda n, m, bias=False: nn.Linear(n, m, bias=bias)
        self.q_proj = linear(hidden_size, keys)
        self.k_proj = linear(hidden_size, keys)
        self.v_proj = linear(hidden_size, values)
        self.q_conv = ShortConvolution(keys, conv_size)
        self.k_conv = ShortConvolution(keys, conv_size)
        self.v_conv = ShortConvolution(values, conv_size)
        if self.decay_by_channel:
            self.f_proj = nn.Sequential(
                linear(hidden_size, self.value_size), linear(self.value_size, keys)
            )
        else:
            self.f_proj = linear(hidden_size, num_heads)
        decays = keys if self.decay_by_channel else num_heads
        # Rates of 1 to 16 and steps of 0.001 to 0.1, as in Mamba-2 and FLA.
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        step = torch.empty(decays).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.g_proj = nn.Sequential(
            linear(hidden_size, self.value_size),
            linear(self.value_size, values, bias=True),
        )
        self.norm_eps = norm_eps
        self.o_norm = nn.Parameter(torch.ones(self.value_size))
        self.o_proj = linear(values, hidden_size)

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1))

    def memory(self, x, arguments):
        """o and the final state of the layer's member of the family."""
        raise NotImplementedError

    def forward(
        self, x, *, initial_state=None, output_final_state=False, cu_seqlens=None
    ):
        """x [B,T,hidden] -> y [B,T,hidden], or with output_final_state
        (y, state [N,heads,K,V]).

        The short convolutions start from zeros, whatever the state.  Packed
        sequences are not kept apart by them.
        """
        if cu_seqlens is not None:
            raise ValueError("cu_seqlens: the convolutions would mix sequences")
        arguments = {
            "q": self._heads(self.q_conv(self.q_proj(x))),
            "k": self._heads(self.k_conv(self.k_proj(x))),
            "v": self._heads(self.v_conv(self.v_proj(x))),
            "g": self._heads(self.f_proj(x)) if self.decay_by_channel else self.f_proj(x),
            "A_log": self.A_log,
            "dt_bias": self.dt_bias,
            "use_gate_in_kernel": True,
            "use_qk_l2norm_in_kernel": True,
            "initial_state": initial_state,
            "output_final_state": output_final_state,
        }
        o, state = self.memory(x, arguments)
        gate = self._heads(self.g_proj(x))
        wide = o if o.dtype == torch.float64 else o.float()
        scale = (wide.square().mean(-1, keepdim=True) + self.norm_eps).rsqrt()
        o = (wide * scale).to(o.dtype) * self.o_norm * torch.sigmoid(gate)
        y = self.o_proj(o.flatten(-2))
        return (y, state) if output_final_state else y


class GatedDeltaNet2(_Layer):
    """GDN-2 (arXiv 2605.22791): erase gate b for each key channel, write gate w
    for each value channel."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        keys = self.num_heads * self.key_size
        values = self.num_heads * self.value_size
        self.b_proj = nn.Linear(self.hidden_size, keys, bias=False)
        self.w_proj = nn.Linear(self.hidden_size, values, bias=False)

    def memory(self, x, arguments):
        b = torch.sigmoid(self._heads(self.b_proj(x)))
        w = torch.sigmoid(self._heads(self.w_proj(x)))
        return chunk_gdn2(b=b, w=w, **arguments)


class Carve(_Layer):
    """CARVE (arXiv 2606.27229): erase gate for each key channel, whose logits
    the mean output of the window before shifts through W_up W_down, and one
    write gate a head.

    window  length of a window in tokens
    rank    inner size of W_up W_down
    """

    def __init__(self, *args, window: int = 64, rank: int = 16, **kwargs):
        super().__init__(*args, **kwargs)
        self.window = window
        keys = self.num_heads * self.key_size
        self.b_proj = nn.Linear(self.hidden_size, keys, bias=False)
        self.w_proj = nn.Linear(self.hidden_size, self.num_heads, bias=False)
        down = torch.randn(self.num_heads, rank, self.value_size)
        self.w_down = nn.Parameter(down / math.sqrt(self.value_size))
        # Zero: it begins as a layer without content gate.
        self.w_up = nn.Parameter(torch.zeros(self.num_heads, self.key_size, rank))

    def memory(self, x, arguments):
        return chunk_carve(
            b=self._heads(self.b_proj(x)),
            w=torch.sigmoid(self.w_proj(x)),
            w_down=self.w_down,
            w_up=self.w_up,
            window=self.window,
            **arguments,
        )


class KimiDeltaAttention(_Layer):
    """KDA (arXiv 2510.26692): decay for each key channel, one beta a head."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.b_proj = nn.Linear(self.hidden_size, self.num_heads, bias=False)

    def memory(self, x, arguments):
        return chunk_kda(beta=torch.sigmoid(self.b_proj(x)), **arguments)


class GatedDeltaNet(_Layer):
    """Gated DeltaNet (arXiv 2412.06464): one decay and one beta a head."""

    decay_by_channel = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.b_proj = nn.Linear(self.hidden_size, self.num_heads, bias=False)

    def memory(self, x, arguments):
        return chunk_gated_delta_rule(beta=torch.sigmoid(self.b_proj(x)), **arguments)
