"""Are functions scored over test vectors as they deserve?"""

import functools
import json
import pathlib
import resource
import subprocess

import numpy as np
import pytest
from test_carve import loop

import carve

TOP = pathlib.Path(__file__).parents[2]


def in_float32(family, **arguments):
    """The exact results, as a port in float32 would have them at best."""
    results = carve.reference(family, **arguments)
    return {n: x.astype(np.float32) for n, x in results.items()}


def seconds():
    """Of processors, by this process and those it has waited for: what else the
    machine does is not counted."""
    return sum(
        sum(resource.getrusage(who)[:2])
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def test_smoke_is_checked_in_half_a_minute():
    start = seconds()
    score = carve.check_suite(in_float32, arrays="numpy")
    took = seconds() - start
    assert score.passed and score and score.check() is score, str(score)
    assert score.counts["pass"] == len(score.vectors) > 80
    assert {"o", "final_state", "dq", "dinitial_state"} <= {
        t["name"] for v in score.vectors.values() for t in v["tensors"]
    }
    assert took < 30, took


def test_a_score_says_which_regimes_fail():
    def port(family, **arguments):
        if "decay_activation" in arguments:
            raise NotImplementedError
        strong = family not in ("linear", "delta") and np.min(arguments["g"]) <= -200
        results = in_float32(family, **arguments)
        return {"o": results["o"] * np.float32(1.01 if strong else 1)}

    only = {"family": ["gdn", "kda"], "length": ["1", "16", "32"]}
    score = carve.check_suite(port, only=only, arrays="numpy", partial=True)
    assert not score and score.verdict == "fail"
    data = json.loads(score.json())
    assert data["failing"] == ["decay -200"]
    assert data["regime"]["decay"]["-200"]["pass"] == 0
    assert score.counts["not run"] > 0
    with pytest.raises(AssertionError, match="all vectors with decay -200 fail"):
        score.check()
    assert "decay -200" in score._repr_html_()
    # Without `partial` what was not run weighs.
    assert carve.check_suite(
        in_float32, only={**only, "front": "bare"}, arrays="numpy"
    ).passed
    forward = carve.check_suite(
        lambda family, **x: {"o": in_float32(family, **x)["o"]},
        only=only,
        arrays="numpy",
    )
    assert forward.verdict == "not judged" and forward.counts["incomplete"] > 0


def test_a_suite_on_disk(tmp_path):
    said = subprocess.run(
        ["carve", "vectors", "--only", "family=delta", "--only", "length=1,16"]
        + ["-o", tmp_path / "suite"],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    suite = carve.vectors(tmp_path / "suite")
    assert len(suite) == len(list(suite)) > 20
    for vector in suite:
        exact = carve.reference(
            vector.family, **vector.inputs, **vector.cotangents, **vector.settings
        )
        assert set(exact) >= set(vector.outputs)
        for name, x in vector.outputs.items():
            assert np.array_equal(exact[name], x), (vector.name, name)
    assert carve.check_suite(in_float32, tmp_path / "suite", arrays="numpy").passed
    # What was changed is not judged by.
    path = next(iter(suite)).path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="expected the digest"):
        carve.check_suite(in_float32, tmp_path / "suite", arrays="numpy")


def test_the_manifest_is_what_its_schema_says(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((TOP / "docs/vectors.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    manifest = carve.vectors("smoke").manifest
    jsonschema.validate(manifest, schema)
    for change in (
        lambda m: m.pop("seed"),
        lambda m: m["vectors"][0].update(sha256="0"),
        lambda m: m["vectors"][0]["outputs"]["o"].pop("units"),
        lambda m: m["vectors"][3]["domains"].update(g="cubic"),
    ):
        wrong = json.loads(json.dumps(manifest))
        change(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_a_function_is_asked_what_it_takes():
    score = carve.assert_conforms(loop, "gdn", arrays="numpy")
    assert len(score.vectors) > 20
    told = json.loads(score.json())["regime"]
    assert set(told["start"]) == {"none", "given"}
    assert set(told["packing"]) == {"dense"} and set(told["front"]) == {"bare"}

    def without_start(q, k, v, g, beta):
        return loop(q, k, v, g, beta)

    score = carve.assert_conforms(without_start, "gated_delta_rule", arrays="numpy")
    assert set(json.loads(score.json())["regime"]["start"]) == {"none"}
    only = {"decay": "natural", "keys": ["repeated", "orthogonal"]}
    score = carve.assert_conforms(loop, "gdn", only=only, arrays="numpy")
    assert set(json.loads(score.json())["regime"]["decay"]) == {"natural"}

    def forgets(q, k, v, g, beta, initial_state=None):
        return loop(q, k, v, g, beta)

    with pytest.raises(AssertionError, match="start given fail, and no others") as e:
        carve.assert_conforms(forgets, "gdn", arrays="numpy")
    # The smallest that fails is reported on alone, with what explains it.
    assert " alone\n" in str(e.value) and "initial state is left out" in str(e.value)
    with pytest.raises(AssertionError, match="unusable .* o: expected"):
        carve.assert_conforms(
            lambda q, k, v, g, beta: loop(q, k, v, g, beta)[0][..., :1].copy(),
            "gdn",
            arrays="numpy",
        )
    with pytest.raises(ValueError, match="arrays: expected"):
        carve.assert_conforms(loop, "gdn", arrays="words")
    with pytest.raises(ValueError, match="dtype: expected"):
        carve.assert_conforms(loop, "gdn", arrays="numpy", dtype="int8")
    with pytest.raises(ValueError, match="family: expected one of"):
        carve.assert_conforms(loop, "gnd", arrays="numpy")
    with pytest.raises(ValueError, match="decay: expected one of"):
        carve.assert_conforms(loop, "gdn", only={"decay": "fast"}, arrays="numpy")


@pytest.mark.parametrize("family", carve.families())
def test_every_family_conforms_to_itself(family):
    exact = functools.partial(in_float32, family)
    only = {"length": ["1", "16"]}
    score = carve.assert_conforms(exact, family, only=only, arrays="numpy")
    told = json.loads(score.json())["regime"]
    assert len(told["packing"]) == 3 and len(told["front"]) >= 2
    tensors = next(iter(score.vectors.values()))["tensors"]
    assert {"o", "dq"} <= {t["name"] for t in tensors}


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")

    def narrow(family, **arguments):
        assert arguments["q"].dtype == ml_dtypes.bfloat16
        results = carve.reference(family, **arguments)
        return {n: x.astype(ml_dtypes.bfloat16) for n, x in results.items()}

    score = carve.check_suite(
        narrow,
        only={"family": ["gdn", "value_erase"], "length": ["16", "64"]},
        arrays="numpy",
        dtype="bfloat16",
    )
    assert score.passed, str(score)
    assert {v["unit"] for v in score.vectors.values()} == {
        "tensor-core/BF16",
        "ieee-recurrent",
    }


def test_a_folder_of_a_suites_name_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()
    made = carve.vectors("smoke", only={"family": "linear", "length": "1"})
    assert made.folder != pathlib.Path("smoke") and len(made) > 1
