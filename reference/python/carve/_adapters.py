"""What do the entry points that people call call their arguments, and what do
they mean by them?  A row of ADAPTERS for each; the conventions, with where
they were read, are on the page "Differences between implementations".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ._arrays import OUTPUTS, SETTINGS, is_torch


def _repeated(x, times: int, axis: int):
    """Each entry along an axis `times` times in a row."""
    if times == 1:
        return x
    if is_torch(x):
        return x.repeat_interleave(times, axis)
    return np.repeat(np.asarray(x), times, axis)


def _ones(passed: dict, head_axis: int = -2):
    """A number for each token and value head, all one."""
    v = passed["v"]
    H = max(passed["q"].shape[head_axis], v.shape[head_axis])
    shape = (*v.shape[:head_axis], H)
    return v.new_ones(shape) if is_torch(v) else np.ones(shape, np.float32)


def _stands(value) -> bool:
    """Does an optional argument ask for anything?"""
    return value is not None and value is not False


@dataclass(frozen=True)
class Adapter:
    """How to read a call of some functions of a package.

    family     member of the family, or what finds it in the arguments
    names      parameter -> tensor or setting of a dump
    says       (parameters, settings): the settings hold where all the
               parameters are given and not False; a later row has the last
               word; a setting may be found in the arguments by a function
    ignored    parameters that do not change the results
    made       tensor -> what makes it of the arguments where it is not given
    shaped     (arguments, tensor, array) -> the array as a dump has it
    outputs    names of what is returned, in order
    signature  parameters of a function that only shows *args
    """

    package: str
    functions: tuple[str, ...]
    family: str | Callable[[dict], str]
    names: dict[str, str]
    settings: dict = field(default_factory=dict)
    says: tuple = ()
    ignored: tuple[str, ...] = ()
    made: dict[str, Callable[[dict], object]] = field(default_factory=dict)
    shaped: Callable | None = None
    outputs: tuple[str, ...] = OUTPUTS
    signature: tuple[str, ...] = ()

    def read(self, function: str, passed: dict):
        """(family, tensors, settings) of a call.

        Raises ValueError naming a parameter that no dump can express.
        """
        known = {*self.names, *self.ignored}
        known.update(p for parameters, _ in self.says for p in parameters)
        for parameter, value in passed.items():
            if parameter not in known and _stands(value):
                raise ValueError(
                    f"{parameter}: a dump cannot say what {function} makes of it"
                )
        settings = dict(self.settings)
        for parameters, found in self.says:
            if all(_stands(passed.get(p)) for p in parameters):
                settings.update(
                    {k: v(passed) if callable(v) else v for k, v in found.items()}
                )
        tensors = {n: make(passed) for n, make in self.made.items()}
        for parameter, name in self.names.items():
            value = passed.get(parameter)
            if value is None:
                continue
            if name in SETTINGS:
                settings[name] = value
            else:
                tensors[name] = value
        family = self.family if isinstance(self.family, str) else self.family(passed)
        return family, tensors, settings

    def shape(self, passed: dict, name: str, x):
        """An input, an output or a gradient as a dump has it."""
        return x if self.shaped is None else self.shaped(passed, name, x)


def _same(names: str) -> dict[str, str]:
    return {n: n for n in names.split()}


# FLA, and what takes its arguments.

_FLA_NAMES = _same("q k v initial_state cu_seqlens scale")
_FLA_IGNORED = (
    "output_final_state",
    "cu_seqlens_cpu",
    "chunk_indices",
    "chunk_size",
    "disable_recompute",
    "return_intermediate_states",
    "safe_gate",
    "use_graph",
    "max_num_seqs",
)
_NORM = (("use_qk_l2norm_in_kernel",), {"l2norm": True})
_V_FIRST = tuple(
    ((p,), {"state_layout": "NHVK"})
    for p in ("state_v_first", "transpose_state_layout")
)
_BETA_LOGITS = (
    (("use_beta_sigmoid_in_kernel",), {"beta_activation": "sigmoid"}),
    (
        ("use_beta_sigmoid_in_kernel", "allow_neg_eigval"),
        {"beta_activation": "doubled_sigmoid"},
    ),
)
_DECAY_LOGITS = (
    (("use_gate_in_kernel",), {"decay_activation": "softplus"}),
    (
        ("use_gate_in_kernel", "lower_bound"),
        {
            "decay_activation": "bounded",
            "lower_bound": lambda passed: passed["lower_bound"],
        },
    ),
    # Without the activation it only says how small g is.
    (("lower_bound",), {}),
)
_DECAY_NAMES = {"g": "g", "A_log": "A_log", "dt_bias": "dt_bias"}


def _bias_by_head(passed: dict, name: str, x):
    """dt_bias of a decay for each channel is flat there."""
    if name == "dt_bias" and passed["g"].ndim == 4:
        return x.reshape(passed["g"].shape[-2:])
    return x


def _fla(functions: str, family, names: str, says=(), **others) -> Adapter:
    return Adapter(
        package="fla",
        functions=tuple(functions.split()),
        family=family,
        names={**_FLA_NAMES, **_same(names)},
        says=(_NORM, *says),
        ignored=_FLA_IGNORED,
        **others,
    )


def _decay_of_gated(passed: dict) -> str:
    """fused_recurrent_gated_delta_rule has a decay a head, a key channel or
    none."""
    if passed.get("g") is not None and passed.get("gk") is not None:
        raise ValueError("gk: a dump has one decay, and g is given too")
    if passed.get("gk") is not None:
        return "kda"
    return "delta" if passed.get("g") is None else "gdn"


# mlx-lm.

def _decay_of_mlx(passed: dict) -> str:
    logits = passed["a" if "a" in passed else "g"]
    return "kda" if logits.ndim == 4 else "gdn"


_MLX = {"scale": 1, "state_layout": "NHVK"}
_MLX_NAMES = {"q": "q", "k": "k", "v": "v", "state": "initial_state"}


# The ONNX operator: [B,T,heads*channels], maybe fewer value heads than query
# heads.

_ONNX_FAMILIES = {
    ("linear", False): "linear",
    ("gated", False): "mamba2",
    ("gated", True): "gla",
    ("delta", False): "delta",
    ("gated_delta", False): "gdn",
    ("gated_delta", True): "kda",
}


def _heads_of_onnx(passed: dict) -> tuple[int, int]:
    return int(passed["q_num_heads"]), int(passed["kv_num_heads"])


def _family_of_onnx(passed: dict) -> str:
    rule = passed.get("update_rule") or "gated_delta"
    if isinstance(rule, bytes):
        rule = rule.decode()
    decay = passed.get("decay")
    by_channel = decay is not None and decay.shape[-1] != _heads_of_onnx(passed)[1]
    return _ONNX_FAMILIES[rule, by_channel]


def _shaped_as_onnx(passed: dict, name: str, x):
    H, HV = _heads_of_onnx(passed)
    of_state = name.endswith("_state")
    if not of_state:
        heads = H if name in ("q", "o") else HV
        if name == "beta" and x.shape[-1] == 1:
            heads = 1
        D = x.shape[-1] // heads
        x = x.reshape(*x.shape[:2], heads, *((D,) if D > 1 or name in "qkvo" else ()))
        if heads == H:
            return x
        return _repeated(x, H // heads, 2)
    return _repeated(x, H // HV, 1)


# FlashInfer: no batch axis, decays themselves, maybe fewer key heads.

def _shaped_as_flashinfer(passed: dict, name: str, x):
    H = passed["q"].shape[1]
    return _repeated(x, H // x.shape[1], 1) if name == "k" and x.shape[1] < H else x


ADAPTERS = (
    _fla(
        "chunk_gated_delta_rule chunk_gdn",
        "gdn",
        "g beta A_log dt_bias",
        (*_V_FIRST, *_BETA_LOGITS, *_DECAY_LOGITS),
    ),
    _fla(
        "fused_recurrent_gated_delta_rule fused_recurrent_gdn",
        _decay_of_gated,
        "g beta A_log dt_bias",
        (*_V_FIRST, *_BETA_LOGITS, *_DECAY_LOGITS, (("gk",), {}), (("gv",), {})),
        made={
            "g": lambda passed: passed.get("gk"),
            "gd": lambda passed: passed.get("gv"),
            "beta": _ones,
        },
    ),
    _fla(
        "chunk_kda fused_recurrent_kda",
        "kda",
        "g beta A_log dt_bias",
        (*_V_FIRST, *_BETA_LOGITS, *_DECAY_LOGITS),
        shaped=_bias_by_head,
    ),
    _fla(
        "chunk_gdn2 fused_recurrent_gdn2",
        "gdn2",
        "g b w A_log dt_bias",
        (*_V_FIRST, *_DECAY_LOGITS),
        shaped=_bias_by_head,
    ),
    _fla(
        "chunk_delta_rule fused_recurrent_delta_rule",
        "delta",
        "beta",
        made={"beta": _ones},
    ),
    _fla(
        "naive_recurrent_gated_delta_rule naive_chunk_gated_delta_rule",
        "gdn",
        "g beta",
    ),
    _fla("naive_recurrent_kda naive_chunk_kda", "kda", "g beta"),
    _fla("naive_recurrent_gdn2 naive_chunk_gdn2", "gdn2", "g b w"),
    _fla(
        "delta_rule_recurrence",
        "delta",
        "beta",
        settings={"layout": "BHTD"},
    ),
    Adapter(
        package="transformers",
        functions=("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"),
        family="gdn",
        names={
            "query": "q",
            "key": "k",
            "value": "v",
            **_same("g beta initial_state"),
        },
        says=(_NORM,),
        ignored=("output_final_state", "chunk_size"),
    ),
    Adapter(
        package="mlx_lm",
        functions=(
            "gated_delta_ops",
            "gated_delta_kernel",
            "gated_delta_kernel_unpacked",
            "gated_delta_kernel_xtree",
        ),
        family=_decay_of_mlx,
        names={**_MLX_NAMES, **_same("g beta")},
        settings={**_MLX, "decay_domain": "linear"},
    ),
    Adapter(
        package="mlx_lm",
        functions=("gated_delta_update",),
        family=_decay_of_mlx,
        names={**_MLX_NAMES, **_same("A_log dt_bias"), "a": "g", "b": "beta"},
        settings={
            **_MLX,
            "decay_activation": "softplus",
            "beta_activation": "sigmoid",
        },
        says=(
            (
                ("lower_bound",),
                {
                    "decay_activation": "bounded",
                    "lower_bound": lambda passed: passed["lower_bound"],
                },
            ),
            (("allow_neg_eigval",), {"beta_activation": "doubled_sigmoid"}),
        ),
        ignored=("use_kernel",),
    ),
    Adapter(
        package="onnx",
        functions=("LinearAttention",),
        family=_family_of_onnx,
        names={
            "query": "q",
            "key": "k",
            "value": "v",
            "past_state": "initial_state",
            "decay": "g",
            "beta": "beta",
        },
        # 0 asks for the default.
        says=((("scale",), {"scale": lambda passed: passed["scale"] or None}),),
        ignored=(
            "q_num_heads",
            "kv_num_heads",
            "update_rule",
            "chunk_size",
            "n_outputs",
            "verbose",
        ),
        shaped=_shaped_as_onnx,
        signature=("query", "key", "value", "past_state", "decay", "beta"),
    ),
    Adapter(
        package="flashinfer",
        functions=("chunk_gated_delta_rule",),
        family=lambda passed: "delta" if passed.get("g") is None else "gdn",
        names={
            **_same("q k v g beta scale initial_state cu_seqlens"),
        },
        settings={"decay_domain": "linear", "state_layout": "NHVK"},
        says=(_NORM,),
        ignored=(
            "output_final_state",
            "output",
            "output_state",
            "state_checkpoints",
            "checkpoint_cu_starts",
            "checkpoint_every_n_tokens",
            "use_cp",
            "_cp_chunk_len",
            "backend",
            "max_seqlen",
        ),
        made={"beta": _ones},
        shaped=_shaped_as_flashinfer,
    ),
)


def names_of_adapters() -> list[str]:
    """All that `adapter` may be, package.function."""
    return [f"{a.package}.{f}" for a in ADAPTERS for f in a.functions]


def adapter_named(name: str) -> Adapter:
    """By package.function.

    Raises ValueError where there is none.
    """
    for a in ADAPTERS:
        if name in (f"{a.package}.{f}" for f in a.functions):
            return a
    known = ", ".join(names_of_adapters())
    raise ValueError(f"adapter: expected one of {known}, got {name!r}")


def name_of(fn) -> str:
    """package.function; of a method that belongs to a class of its own, the
    class: onnx.reference has its operators so."""
    of = getattr(fn, "__self__", None)
    if of is not None and not inspect.ismodule(of):
        fn = of if isinstance(of, type) else type(of)
    package = (getattr(fn, "__module__", None) or "").partition(".")[0]
    return f"{package}.{getattr(fn, '__name__', '')}"


def adapter_of(fn) -> Adapter | None:
    """The row that a function's module and name belong to, if any does."""
    name = name_of(fn)
    return adapter_named(name) if name in names_of_adapters() else None


def signature_of(fn, adapter: Adapter | None) -> inspect.Signature:
    """What to bind a call's arguments to."""
    if adapter is None or not adapter.signature:
        return inspect.signature(fn)
    shown = inspect.signature(fn).parameters.values()
    if all(p.kind is not p.VAR_POSITIONAL for p in shown):
        return inspect.signature(fn)
    kind = inspect.Parameter
    return inspect.Signature(
        [
            kind(p, kind.POSITIONAL_OR_KEYWORD, default=None)
            for p in adapter.signature
        ]
        + [kind("attributes", kind.VAR_KEYWORD)]
    )
