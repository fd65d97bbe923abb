"""Does a function conform to a member of the family, or a port to all of it?
Test vectors, a call for each, a score."""

from __future__ import annotations

import html
import inspect
import pathlib
import sys
import tempfile

from . import _carve
from ._arrays import TABLES, readables, setting_pairs, tensors_of
from ._capture import named_outputs
from ._report import Outcome, Report
from ._vectors import Vector, run
from ._vectors import vectors as _suite

_OF_DTYPE = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Score(Outcome):
    """What came of a suite of vectors, by the program `carve check`."""

    @property
    def counts(self) -> dict[str, int]:
        """How many vectors came to what."""
        return self._data["counts"]

    @property
    def vectors(self) -> dict[str, dict]:
        """By name, what the program's JSON says of each vector."""
        return {v["name"]: v for v in self._data["vectors"]}

    def __repr__(self) -> str:
        return f"<carve.Score {self._data['suite']}: {self.verdict}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self._table)}</pre>"


class _Numpy:
    """Arrays of numpy; gradients are the function's own."""

    def __init__(self, device):
        pass

    def array(self, x, dtype):
        if dtype == "bfloat16":
            import ml_dtypes

            return x.astype(ml_dtypes.bfloat16)
        return x.astype(dtype)

    def integers(self, x):
        return x.copy()

    def call(self, fn, arrays, cotangents):
        return named_outputs(fn(**arrays))


class _Torch:
    """Tensors of torch; gradients through its autograd."""

    def __init__(self, device):
        import torch

        self._torch, self._device = torch, device

    def array(self, x, dtype):
        dtype = getattr(self._torch, dtype)
        return self._torch.tensor(x, device=self._device).to(dtype)

    def integers(self, x):
        return self._torch.tensor(x, device=self._device)

    def call(self, fn, arrays, cotangents):
        if not cotangents:
            return named_outputs(fn(**arrays))
        for x in arrays.values():
            if self._torch.is_tensor(x) and x.is_floating_point():
                x.requires_grad_()
        outputs = named_outputs(fn(**arrays))
        leaves = {
            n: x for n, x in arrays.items() if self._torch.is_tensor(x) and x.is_leaf
        }
        leaves = {n: x for n, x in leaves.items() if x.requires_grad}
        known = {n: x for n, x in outputs.items() if x.requires_grad}
        if not known:
            return outputs
        found = self._torch.autograd.grad(
            list(known.values()),
            list(leaves.values()),
            [self.array(cotangents["d" + n], "float64").to(x) for n, x in known.items()],
            allow_unused=True,
        )
        # What takes no part in the outputs has a slope of zero.
        gradients = {
            "d" + n: self._torch.zeros_like(x) if g is None else g
            for (n, x), g in zip(leaves.items(), found)
        }
        return {**outputs, **gradients}


class _Jax:
    """Arrays of jax; gradients by its vjp."""

    def __init__(self, device):
        import jax

        self._jax = jax

    def array(self, x, dtype):
        return self._jax.numpy.asarray(x, dtype)

    def integers(self, x):
        return self._jax.numpy.asarray(x, "int32")

    def call(self, fn, arrays, cotangents):
        if not cotangents:
            return named_outputs(fn(**arrays))
        jnp = self._jax.numpy
        leaves = {
            n: x
            for n, x in arrays.items()
            if isinstance(x, self._jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
        }
        outputs, back = self._jax.vjp(
            lambda given: named_outputs(fn(**{**arrays, **given})), leaves
        )
        (found,) = back(
            {n: jnp.asarray(cotangents["d" + n], x.dtype) for n, x in outputs.items()}
        )
        return {**outputs, **{"d" + n: g for n, g in found.items()}}


_KINDS = {"numpy": _Numpy, "torch": _Torch, "jax": _Jax}


def _kind(arrays, device):
    if arrays is None:
        arrays = "torch" if "torch" in sys.modules else "numpy"
    if arrays not in _KINDS:
        raise ValueError(f"arrays: expected one of {list(_KINDS)}, got {arrays!r}")
    return arrays, _KINDS[arrays](device)


def _arrays(kind, vector: Vector, tensors: dict, dtype: str) -> dict:
    """In that dtype; in float32 what it does not hold exactly."""

    def of(name, x):
        if x.dtype.kind == "i":
            return kind.integers(x)
        exact = vector.entry["inputs"][name]["exact_in"]
        fits = dtype == "float64" or _OF_DTYPE[dtype] in exact
        return kind.array(x, dtype if fits else "float32")

    return {name: of(name, x) for name, x in tensors.items()}


def _profiles(profile, dtype) -> tuple[str, ...]:
    if profile:
        return (profile,)
    return ("fp32" if dtype in ("float32", "float64") else "tensor-core",)


def _score(vectors, call, *, partial, dtype, profile, threshold, max_threshold):
    """Calls `call` with each vector and has the program judge what it returns;
    None is a vector that was not run.  Returns the score and, by vector, what
    was returned."""
    returned = {}
    with tempfile.TemporaryDirectory(prefix="carve.") as scratch:
        results = pathlib.Path(scratch, "results")
        results.mkdir()
        for vector in vectors:
            outputs = call(vector)
            if outputs is None:
                continue
            returned[vector.name] = outputs
            _carve.save(readables(outputs), [], str(results / vector.path.name))
        report = pathlib.Path(scratch, "score.json")
        words = ["--json", str(report)]
        if dtype != "float64":
            words += ["--inputs", _OF_DTYPE[dtype]]
        for word, value in (
            ("--profile", profile),
            ("--threshold", threshold),
            ("--max-threshold", max_threshold),
        ):
            words += [] if value is None else [word, str(value)]
        words += ["--partial"] if partial else []
        table = run("check", str(vectors.folder), str(results), *words).stdout
        return Score(table, report.read_text()), returned


def _report(vector: Vector, inputs: dict, outputs: dict, **settings) -> Report:
    """The verdict on one vector alone, with what explains it."""
    pairs = setting_pairs(vector.family, {**vector.settings, **settings})
    return Report(*_carve.verify(readables({**inputs, **outputs}), pairs))


def _parameters(fn) -> tuple[set[str], bool]:
    """Names of what a function takes, and whether it takes any other."""
    parameters = inspect.signature(fn).parameters.values()
    return (
        {p.name for p in parameters},
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _check_dtype(dtype):
    if dtype not in _OF_DTYPE:
        raise ValueError(f"dtype: expected one of {list(_OF_DTYPE)}, got {dtype!r}")


def check_suite(
    fn,
    suite="smoke",
    *,
    only=None,
    arrays=None,
    dtype="float32",
    device="cpu",
    backward=True,
    partial=False,
    seed=1,
    profile=None,
    threshold=None,
    max_threshold=None,
) -> Score:
    """Calls a port with the inputs of every vector of a suite and scores it.

    fn        called as `carve.reference` is: `fn(family, q=..., k=..., ...)`, with
              the tensors of a vector and its settings (`window`, `l2norm`, ...);
              returns o, or (o, final_state), or a dict by name. A
              NotImplementedError says that it cannot do this one: it is not run
    suite     "smoke", "standard", "full", or a folder that `carve vectors` wrote
    only      regimes, {"family": ["gdn", "kda"], "front": "bare"}
    arrays    "torch", "jax" or "numpy"; torch where it has been imported
    dtype     of all tensors; one whose numbers it does not hold stays float32
    backward  gradients are judged too: through autograd, jax.vjp or, of numpy, by
              what fn returns: do and dfinal_state are then among its keywords
    partial   what was not run does not count
    profile   and thresholds, as in `carve check`

    The score is true where all vectors pass and prints as a table.
    """
    _check_dtype(dtype)
    arrays, kind = _kind(arrays, device)
    vectors = _suite(suite, only=only, seed=seed, profiles=_profiles(profile, dtype))

    def call(vector):
        inputs = _arrays(kind, vector, vector.inputs, dtype)
        inputs |= vector.settings
        cotangents = vector.cotangents if backward else {}
        if arrays == "numpy":
            inputs |= _arrays(kind, vector, cotangents, dtype)
        try:
            return kind.call(
                lambda **given: fn(vector.family, **given), inputs, cotangents
            )
        except NotImplementedError:
            return None

    score, _ = _score(
        vectors,
        call,
        partial=partial,
        dtype=dtype,
        profile=profile,
        threshold=threshold,
        max_threshold=max_threshold,
    )
    return score


def assert_conforms(
    fn,
    family,
    suite="smoke",
    *,
    only=None,
    arrays=None,
    dtype="float32",
    device="cpu",
    backward=True,
    seed=1,
    profile=None,
    threshold=None,
    max_threshold=None,
) -> Score:
    """Calls `fn` with test vectors of one family and judges what it returns.

    fn        called with keywords, the names of the family's tensors (q, k, v,
              ...); returns o, or (o, final_state), or a dict by name. It is
              called with what it takes: start states where it has a parameter
              initial_state, packed sequences where it has cu_seqlens, logits
              and q and k to be normalised where it has l2norm (and is told in
              beta_activation, decay_activation, ... what to do), and all where
              it takes any keyword
    suite     how many vectors, and how wide: "smoke", "standard" or "full"
    only      regimes, {"decay": ["slow", "natural"]}
    arrays    "torch", "jax" or "numpy"; torch where it has been imported
    dtype     of all tensors; one whose numbers it does not hold stays float32
    backward  gradients are judged too: through autograd, jax.vjp or, of numpy,
              where fn takes do and dfinal_state and returns them

    Raises AssertionError with the table where a vector fails, or what fn returns
    cannot be read, and with the report on the smallest vector that fails; ValueError where an argument cannot be used.
    """
    __tracebackhide__ = True
    _check_dtype(dtype)
    tensors_of(family)  # or an error that names all
    arrays, kind = _kind(arrays, device)
    names, any_other = _parameters(fn)
    regimes = {
        "family": next(
            f["name"]
            for f in TABLES["families"]
            if family == f["name"] or family in f["aliases"].split()
        )
    }
    for name, factor, without in (
        ("initial_state", "start", "none"),
        ("cu_seqlens", "packing", "dense"),
        ("l2norm", "front", "bare"),
    ):
        if name not in names and not any_other:
            regimes[factor] = without
    vectors = _suite(
        suite,
        only={**regimes, **(only or {})},
        seed=seed,
        profiles=_profiles(profile, dtype),
    )

    def call(vector):
        given = _arrays(kind, vector, vector.inputs, dtype)
        given |= {
            n: x for n, x in vector.settings.items() if n in names or any_other
        }
        cotangents = vector.cotangents if backward else {}
        if arrays == "numpy" and ("do" in names or any_other):
            given |= _arrays(kind, vector, cotangents, dtype)
        return kind.call(fn, given, cotangents)

    score, returned = _score(
        vectors,
        call,
        partial=True,
        dtype=dtype,
        profile=profile,
        threshold=threshold,
        max_threshold=max_threshold,
    )
    if not score:
        text = f"\n{score}"
        failing = [v for v in vectors if score.vectors[v.name]["verdict"] == "fail"]
        if failing:
            # The smallest says it in the fewest numbers.
            v = min(failing, key=lambda v: v.entry["bytes"])
            inputs = _arrays(kind, v, {**v.inputs, **v.cotangents}, dtype)
            report = _report(
                v,
                inputs,
                returned[v.name],
                profile=profile,
                threshold=threshold,
                max_threshold=max_threshold,
            )
            text += f"\n{v.name} alone\n{report}"
        raise AssertionError(text)
    return score
