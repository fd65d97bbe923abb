"""Test vectors as node tests of ONNX's operator LinearAttention.

    python -m carve.onnx_tests --suite smoke -o DIR

A folder for each vector, as ONNX's own backend tests have them: `model.onnx` with one
node, and in `test_data_set_0`, ... the tensors `input_0.pb`, ..., `output_0.pb`,
`output_1.pb`, a set for each sequence that is not empty.  Outputs are the exact ones,
rounded once to float32.  Needs the package onnx, 1.23 or later.

The operator, opset 27, takes [B,T,H*D]; queries may have more heads than keys and
values, and not fewer, so queries and keys that value heads share are repeated.  Its
state is [B,H,K,V], its decay a natural logarithm and its scale 1/sqrt(K): as here.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from ._vectors import Suite, Vector, vectors

#: Which update rule of the operator is which member of the family.
RULES = {
    "linear": "linear",
    "mamba2": "gated",
    "gla": "gated",
    "delta": "delta",
    "gdn": "gated_delta",
    "kda": "gated_delta",
}

#: Inputs of the operator in its order, by our names.
INPUTS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "past_state": "initial_state",
    "decay": "g",
    "beta": "beta",
}

OPSET = 27


def sequences(vector: Vector):
    """(first token, end, index of the state, batch entries) of each sequence that
    is not empty; of a batch, of all its entries at once."""
    cu_seqlens = vector.inputs.get("cu_seqlens")
    size = vector.entry["size"]
    if cu_seqlens is None:
        yield slice(0, size["T"]), slice(0, size["B"])
        return
    for n, (first, end) in enumerate(zip(cu_seqlens, cu_seqlens[1:])):
        if end > first:
            yield slice(int(first), int(end)), slice(n, n + 1)


def tensors_of(vector: Vector, tokens: slice, states: slice):
    """(inputs by the operator's names, outputs) of one sequence or batch."""
    size = vector.entry["size"]
    group = size["HV"] // size["H"]

    def flat(x):
        x = x[:, tokens]
        return np.ascontiguousarray(x.reshape(*x.shape[:2], -1), dtype=np.float32)

    ours = dict(vector.inputs)
    ours["q"], ours["k"] = (np.repeat(ours[n], group, axis=2) for n in "qk")
    inputs = {
        theirs: np.ascontiguousarray(ours[name][states])
        if name == "initial_state"
        else flat(ours[name])
        for theirs, name in INPUTS.items()
        if name in ours
    }
    exact = vector.outputs
    outputs = {
        "output": flat(exact["o"]),
        "present_state": exact["final_state"][states].astype(np.float32),
    }
    return inputs, outputs


def model_of(vector: Vector):
    """A model of one node, for any batch and any number of tokens."""
    import onnx
    from onnx import helper

    tokens, states = next(sequences(vector))
    inputs, outputs = tensors_of(vector, tokens, states)
    node = helper.make_node(
        "LinearAttention",
        inputs=_without_last_blanks(n if n in inputs else "" for n in INPUTS),
        outputs=list(outputs),
        update_rule=RULES[vector.family],
        q_num_heads=vector.entry["size"]["HV"],
        kv_num_heads=vector.entry["size"]["HV"],
    )

    def described(name, x):
        shape = ["B", "T", x.shape[2]] if x.ndim == 3 else ["B", *x.shape[1:]]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        vector.name,
        [described(n, x) for n, x in inputs.items()],
        [described(n, x) for n, x in outputs.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, producer_name="carve", opset_imports=[opset])


def _without_last_blanks(names) -> list[str]:
    names = list(names)
    while not names[-1]:
        names.pop()
    return names


def applies(vector: Vector) -> bool:
    """Whether the operator can say what the vector says."""
    return vector.family in RULES and vector.regime["front"] == "bare"


def write(suite: Suite, folder) -> list[pathlib.Path]:
    """Writes the vectors to which the operator applies.

    Returns their folders; raises ValueError where there is none.
    """
    from onnx import numpy_helper

    written = []
    for vector in filter(applies, suite):
        path = pathlib.Path(folder, "test_linear_attention_" + vector.name)
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.onnx").write_bytes(model_of(vector).SerializeToString())
        for i, (tokens, states) in enumerate(sequences(vector)):
            data = path / f"test_data_set_{i}"
            data.mkdir(exist_ok=True)
            for kind, tensors in zip(
                ("input", "output"), tensors_of(vector, tokens, states)
            ):
                for j, (name, x) in enumerate(tensors.items()):
                    proto = numpy_helper.from_array(x, name)
                    (data / f"{kind}_{j}.pb").write_bytes(proto.SerializeToString())
        written.append(path)
    if not written:
        raise ValueError("the operator LinearAttention applies to no vector here")
    return written


def main(words=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m carve.onnx_tests")
    parser.add_argument("--suite", default="smoke", help="smoke, standard, full or DIR")
    parser.add_argument("-o", "--output", required=True, metavar="DIR")
    given = parser.parse_args(words)
    only = {"family": list(RULES), "front": "bare"}
    suite = vectors(given.suite, only=only, profiles=("fp32",))
    print(f"{len(write(suite, given.output))} node tests in {given.output}")


if __name__ == "__main__":
    main()
