"""Does the package say what the library says, of arrays of whatever kind?"""

import html
import json
import subprocess
import threading
import time

import numpy as np
import pytest

import carve


def problem(seed=0, T=33, dtype=np.float32):
    """Inputs of the gdn family."""
    random = np.random.default_rng(seed)
    q, k = (random.standard_normal((1, T, 2, 8)) for _ in range(2))
    return {
        "q": q.astype(dtype),
        "k": (k / np.linalg.norm(k, axis=-1, keepdims=True)).astype(dtype),
        "v": random.standard_normal((1, T, 2, 4)).astype(dtype),
        "g": (-np.exp(random.standard_normal((1, T, 2)))).astype(dtype),
        "beta": random.uniform(0, 1, (1, T, 2)).astype(dtype),
    }


def loop(q, k, v, g, beta, initial_state=None):
    """The gated delta rule as a program for numpy would do it."""
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    S = np.zeros((B, HV, K, V), q.dtype)
    if initial_state is not None:
        S = initial_state.copy()
    q, k = (np.repeat(x, HV // H, axis=2) for x in (q, k))
    o = np.empty_like(v)
    for t in range(T):
        S *= np.exp(g[:, t])[..., None, None]
        seen = np.einsum("bhk,bhkv->bhv", k[:, t], S)
        write = beta[:, t][..., None] * (v[:, t] - seen)
        S += np.einsum("bhk,bhv->bhkv", k[:, t], write)
        o[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t], S) / np.sqrt(K).astype(q.dtype)
    return o, S


def test_reference_is_the_recurrence_in_float64():
    x = problem(dtype=np.float64)
    o, S = loop(**x)
    exact = carve.reference("gdn", **x)
    assert set(exact) == {"o", "final_state"}
    assert exact["o"].dtype == np.float64
    np.testing.assert_allclose(exact["o"], o, rtol=0, atol=1e-14)
    np.testing.assert_allclose(exact["final_state"], S, rtol=0, atol=1e-14)


def test_gradients_are_slopes():
    x = problem(dtype=np.float64, T=5)
    do = np.random.default_rng(1).standard_normal(x["v"].shape)
    exact = carve.reference("gdn", do=do, **x)
    assert {"dq", "dk", "dv", "dg", "dbeta"} < set(exact)
    for name, at in [("q", (0, 2, 1, 3)), ("g", (0, 1, 0)), ("beta", (0, 3, 1))]:
        h = 1e-5

        def value(step):
            y = {n: a.copy() for n, a in x.items()}
            y[name][at] += step
            return np.sum(carve.reference("gdn", **y)["o"] * do)

        slope = (value(h) - value(-h)) / (2 * h)
        assert exact["d" + name][at] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_strides_are_followed_and_settings_are_words():
    x = problem(dtype=np.float64)
    plain = carve.reference("gdn", scale=0.3, **x)
    apart = {n: np.asfortranarray(a) for n, a in x.items()}
    apart["v"] = x["v"][:, ::-1].copy()[:, ::-1]
    for name, a in carve.reference("gdn", scale=0.3, **apart).items():
        assert np.array_equal(a, plain[name]), name
    first = {n: a.swapaxes(1, 2) for n, a in x.items()}
    other = carve.reference(
        "gdn", layout="BHTD", state_layout="NHVK", scale=0.3, **first
    )
    assert np.array_equal(other["o"].swapaxes(1, 2), plain["o"])
    assert np.array_equal(other["final_state"].swapaxes(2, 3), plain["final_state"])
    normed = carve.reference("gdn", scale=0.3, l2norm=True, precision="double", **x)
    assert not np.allclose(normed["o"], plain["o"])


def test_a_sound_kernel_passes_and_a_planted_bug_fails():
    x = problem()
    o, S = loop(**x)
    report = carve.verify("gdn", x, {"o": o, "final_state": S})
    assert report.passed and report and report.check() is report
    assert set(report.tensors) == {"o", "final_state"}
    assert report.tensors["o"]["ratio"] < 1.5
    assert json.loads(report.json())["verdict"] == "pass"

    wrong, S = loop(**{**x, "beta": 2 * x["beta"]})
    report = carve.verify("gdn", x, {"o": wrong, "final_state": S})
    assert not report and report.verdict == "fail"
    with pytest.raises(AssertionError) as raised:
        report.check()
    assert str(report) in str(raised.value)
    page = report._repr_html_()
    assert ">fail</b>" in page and "<table>" in page and "<svg" in page
    assert html.escape(report.tensors["o"]["reason"]) in report._repr_html_()


def test_a_failure_is_explained():
    x = problem()
    o, S = loop(**{**x, "g": np.log(2).astype(np.float32) * x["g"]})
    both = {"o": o, "final_state": S}
    report = carve.verify("gdn", x, both)
    best = report.diagnosis[0]
    assert best["id"] == "decay-exp2" and best["ratio"] < 1.5
    assert best["tensors"] == ["o", "final_state"]
    assert best["text"] in " ".join(str(report).split())
    assert html.escape(best["text"]) in report._repr_html_()
    assert json.loads(report.json())["diagnosis"] == report.diagnosis
    assert carve.diagnose("gdn", x, both) == report.diagnosis
    silent = carve.verify("gdn", x, both, diagnose=False)
    assert silent.diagnosis == [] and best["text"] not in str(silent)
    assert str(report).startswith(str(silent))
    right, S = loop(**x)
    assert carve.diagnose("gdn", x, {"o": right, "final_state": S}) == []
    with pytest.raises(ValueError, match="diagnose: expected true or false"):
        carve.verify("gdn", x, both, diagnose="maybe")


def test_what_is_known_of_a_kernel_is_a_setting():
    x = problem()
    o, S = loop(**x)
    both = {"o": o, "final_state": S}
    walked = carve.verify("gdn", x, both, profile="ieee-recurrent", seed=2)
    assert walked.passed and "ieee-recurrent" in str(walked)
    assert "chunks of 16" in str(carve.verify("gdn", x, both, chunk=16))
    # No start state: not everything can be seen.
    strict = carve.verify("gdn", x, both, strict=True)
    assert strict.verdict == "not judged" and not strict
    with pytest.raises(AssertionError):
        strict.check()
    for wrong, text in [
        ({"profile": "tensor-core"}, "profile: tensor-core is for BF16"),
        ({"chunk": 0}, "chunk: expected a positive number"),
        ({"threshold": "wide"}, "threshold: expected a positive number"),
        ({"strict": "maybe"}, "strict: expected true or false"),
    ]:
        with pytest.raises(ValueError) as raised:
            carve.verify("gdn", x, both, **wrong)
        assert str(raised.value).startswith(text)


def test_the_table_is_that_of_the_program(tmp_path):
    x = problem()
    o, S = loop(**x)
    path = tmp_path / "x.safetensors"
    carve.save(path, "gdn", {**x, "o": o, "final_state": S})
    said = subprocess.run(["carve", "verify", path], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    table = str(carve.verify("gdn", x, {"o": o, "final_state": S}))
    # The first line begins with what was judged, a file here, a family there.
    assert said.stdout.splitlines()[1:] == table.splitlines()[1:]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"beta": None}, "beta: missing; family gdn needs"),
        ({"q": np.zeros((2, 3))}, "q: expected [B,T,H,K]"),
        ({"q": "words"}, "q: expected an array, got"),
        ({"v": np.zeros((1, 33, 2, 4), np.complex64)}, "v: expected elements of"),
        ({"speed": 9}, "q: expected"),
        ({"scale": "wide"}, 'scale: expected a finite number, got "wide"'),
        ({"layout": "THE"}, "layout: expected one of"),
    ],
)
def test_errors_are_the_librarys(change, text):
    if "speed" in change:
        text = "speed: expected an array"
        change = {"speed": "9"}
    with pytest.raises(ValueError) as raised:
        carve.reference("gdn", **{**problem(), **change})
    assert str(raised.value).startswith(text)


def test_unknown_names_are_errors():
    x = problem()
    with pytest.raises(ValueError, match="family"):
        carve.reference("gnd", **x)
    with pytest.raises(ValueError, match="speed: unknown setting"):
        carve.verify("gdn", x, {"o": x["v"]}, speed=9)
    with pytest.raises(ValueError, match="no output to judge"):
        carve.verify("gdn", x, {})
    with pytest.raises(ValueError, match="q: expected among inputs or outputs"):
        carve.verify("gdn", x, {"q": x["q"]})


def test_other_threads_run_meanwhile():
    x = problem(T=60000)
    seen, done = [time.monotonic()], threading.Event()

    def look():
        while not done.is_set():
            seen.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    start = time.monotonic()
    carve.reference("gdn", threads=1, **x)
    took = time.monotonic() - start
    done.set()
    thread.join()
    # Were it held, the thread would see nothing between start and end.
    assert np.diff(seen).max() < took / 2


def test_packed_sequences():
    x = problem(dtype=np.float64)
    cut = 20
    packed = carve.reference("gdn", cu_seqlens=np.array([0, cut, 33]), **x)
    for part in (slice(0, cut), slice(cut, 33)):
        alone = carve.reference("gdn", **{n: a[:, part] for n, a in x.items()})
        assert np.array_equal(packed["o"][:, part], alone["o"])
    assert packed["final_state"].shape == (2, 2, 8, 4)


def test_a_call_is_captured(tmp_path):
    path = tmp_path / "call.safetensors"

    def kernel(q, k, v, log_decay, beta, h0=None, verbose=False):
        o, S = loop(q, k, v, log_decay, beta, h0)
        if h0 is not None:
            h0[...] = S  # as kernels do that update the state in place
        return o, S

    x = problem()
    state = np.ones((1, 2, 8, 4), np.float32)
    names = {"log_decay": "g", "h0": "initial_state"}
    watched = carve.capture(kernel, family="gdn", file=path, names=names)
    o, S = watched(x["q"], x["k"], x["v"], x["g"], beta=x["beta"], h0=state)
    assert np.array_equal(S, state)
    written = path.read_bytes()
    watched(x["q"], x["k"], x["v"], x["g"], beta=x["beta"])
    assert path.read_bytes() == written
    said = subprocess.run(["carve", "verify", path], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "final_state" in said.stdout


def test_parameters_that_are_settings_are_captured(tmp_path):
    path = tmp_path / "call.safetensors"

    def norm(x):
        return x / np.sqrt((x * x).sum(-1, keepdims=True) + np.float32(1e-6))

    def kernel(q, k, v, g, beta, scale=None, use_qk_l2norm_in_kernel=False):
        if use_qk_l2norm_in_kernel:
            q, k = norm(q), norm(k)
        o, S = loop(q, k, v, g, beta)
        return (o if scale is None else o * np.float32(scale * 8**0.5)), S

    names = {"use_qk_l2norm_in_kernel": "l2norm"}
    watched = carve.capture(kernel, family="gated_delta_rule", file=path, names=names)
    watched(**problem(), scale=0.25, use_qk_l2norm_in_kernel=True)
    said = subprocess.run(["carve", "verify", path], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "scale 0.25" in said.stdout


pytest_plugins = ["pytester"]


def test_the_plugin_writes_a_page(pytester):
    pytester.makepyfile(
        """
        import carve, numpy as np

        def test_exact():
            x = {n: np.ones((1, 1, 1, 1), np.float32) for n in "qkv"}
            carve.verify("linear", x, {"o": x["q"]}).check()

        def test_wrong():
            x = {n: np.ones((1, 1, 1, 1), np.float32) for n in "qkv"}
            carve.verify("linear", x, {"o": 2 * x["q"]}).check()
        """
    )
    run = pytester.runpytest_subprocess("--carve-report", "page.html")
    run.assert_outcomes(passed=1, failed=1)
    run.stdout.fnmatch_lines(["*FAIL*o:*", "carve: 2 verdicts in page.html"])
    page = (pytester.path / "page.html").read_text()
    assert "test_exact" in page and "test_wrong" in page and "FAIL" in page


def test_numbers_of_16_and_8_bits():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = problem()
    narrow = {n: a.astype(ml_dtypes.bfloat16) for n, a in x.items()}
    wide = {n: a.astype(np.float64) for n, a in narrow.items()}
    assert np.array_equal(
        carve.reference("gdn", **narrow)["o"], carve.reference("gdn", **wide)["o"]
    )


def test_dumps_are_related():
    inputs = problem()
    o, state = loop(**inputs)
    a = {**inputs, "o": o, "final_state": state}
    same = carve.relate("repeat", "gdn", a, dict(a))
    assert same.passed and same.bit_for_bit
    assert {t["name"] for t in same.tensors} == {"o", "final_state"}
    b = {**a, "o": (a["o"] * 1.01).astype(np.float32)}
    other = carve.relate("repeat", "gdn", a, b)
    assert not other.passed and not other.bit_for_bit
    with pytest.raises(AssertionError, match="o"):
        other.check()
    with pytest.raises(ValueError, match="repeat"):
        carve.relate("likeness", "gdn", a, a)


def test_stages_are_judged(tmp_path):
    inputs = problem()
    tokens, heads = inputs["v"].shape[1:3]
    path = tmp_path / "stages.safetensors"
    written = carve.stages("gdn", inputs, path=path, chunk=16)
    assert written.stages == {} and path.stat().st_size > 0
    wrong = np.zeros((1, tokens, heads, 16))
    judged = carve.stages("gdn", inputs, {"L": wrong}, chunk=16)
    assert not judged.passed
    assert judged.first_wrong == "L"
    assert judged.stages["L"]["verdict"] == "fail"
    with pytest.raises(ValueError, match="no stage to judge"):
        carve.stages("gdn", inputs)
