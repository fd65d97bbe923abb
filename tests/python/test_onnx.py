"""Do the node tests say of ONNX's LinearAttention what the vectors say?"""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", "1.23")

from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import carve
from carve import onnx_tests


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(vector, its folder) of every node test."""
    folder = tmp_path_factory.mktemp("onnx")
    only = {
        "family": list(onnx_tests.RULES),
        "front": "bare",
        "length": ["1", "16", "32"],
    }
    suite = carve.vectors(only=only, profiles=("fp32",))
    folders = onnx_tests.write(suite, folder)
    assert len(folders) == len(suite)
    return list(zip(suite, folders))


def data_sets(folder):
    """(inputs, outputs) by name, as a backend's runner reads them."""
    for path in sorted(folder.glob("test_data_set_*")):
        yield [
            {
                x.name: numpy_helper.to_array(x)
                for f in sorted(path.glob(f"{kind}_*.pb"))
                for x in [onnx.load_tensor(f)]
            }
            for kind in ("input", "output")
        ]


def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


def reference(model):
    return ReferenceEvaluator(model)


def runtime(model):
    """ONNX Runtime's kernels for a CPU."""
    ort = pytest.importorskip("onnxruntime", "1.32", reason="no onnxruntime 1.32")
    return ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


RUNNERS = [reference, runtime]


def error(runner, model, inputs, expected, unit):
    """Of an implementation, in units; the largest of the outputs'."""
    got = runner(model).run(list(expected), inputs)
    return max(
        rms(x - y) / max(unit[n][0], rms(y) * 2.0**-25, 1e-38)
        for x, (n, y) in zip(got, expected.items())
    )


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_models_are_valid_and_sound_implementations_pass(runner, written):
    seen = set()
    for vector, folder in written:
        model = onnx.load(folder / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        unit = {
            theirs: vector.entry["outputs"][ours]["units"]["fp32"]["F32"]
            for theirs, ours in (("output", "o"), ("present_state", "final_state"))
        }
        sets = list(data_sets(folder))
        assert len(sets) == (1 if vector.regime["packing"] == "dense" else 2)
        for inputs, expected in sets:
            assert list(inputs) == [i.name for i in model.graph.input]
            # A unit is of all sequences; in one of them there may be more of it.
            limit = 1.5 if len(sets) == 1 else 6
            assert error(runner, model, inputs, expected, unit) <= limit, vector.name
        seen.add((vector.family, vector.regime["packing"], vector.regime["start"]))
    assert {s[0] for s in seen} == set(onnx_tests.RULES)
    assert {s[1] for s in seen} == {"dense", "packed", "padded"}
    assert {s[2] for s in seen} == {"none", "given"}


@pytest.mark.parametrize("runner", RUNNERS)
def test_another_rule_does_not_pass(runner, written):
    tried = 0
    for vector, folder in written:
        if vector.family != "gdn" or vector.regime["length"] == "1":
            continue
        model = onnx.load(folder / "model.onnx")
        # Without the erase: v is no longer corrected by what is there.
        (rule,) = (a for a in model.graph.node[0].attribute if a.name == "update_rule")
        rule.s = b"gated"
        node = model.graph.node[0]
        node.input[5] = ""
        inputs, expected = list(data_sets(folder))[-1]
        inputs.pop("beta")
        (beta,) = (i for i in model.graph.input if i.name == "beta")
        model.graph.input.remove(beta)
        unit = {n: [1e-5 * rms(y), 0] for n, y in expected.items()}
        assert error(runner, model, inputs, expected, unit) > 100, vector.name
        tried += 1
    assert tried > 5


def test_the_command_writes_them(tmp_path, capsys):
    suite = carve.vectors(only={"family": "linear", "length": "1"}, profiles=("fp32",))
    onnx_tests.main(["--suite", str(suite.folder), "-o", str(tmp_path)])
    count = len(list(tmp_path.glob("test_linear_attention_linear-*/model.onnx")))
    assert f"{count} node tests in" in capsys.readouterr().out and count > 1
    gated = carve.vectors(only={"family": "gdn2", "length": "1"}, profiles=("fp32",))
    with pytest.raises(ValueError, match="applies to no vector"):
        onnx_tests.write(gated, tmp_path)
