"""Does the page on Python do what it says?"""

import pathlib
import re
import subprocess

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs/python.md"


def run(text, names):
    """All blocks of Python of a text, in order; returns how many."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return len(blocks)


def parts():
    """The page up to where torch is needed, and the rest."""
    before, title, after = PAGE.read_text().partition("## Operators of torch")
    assert title
    return before, after


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert run(parts()[0], names) == 9
    said = capsys.readouterr().out
    assert "pass  all 2 tensors are within" in said
    assert re.search(r"pass  \d+ vectors: (\d+) pass, 0 fail", said)
    assert "float64 ['dbeta', 'dg', 'dk', 'dq', 'dv', 'final_state', 'o']" in said
    assert "k: missing; family gdn needs" in said
    assert {t for t, v in names["report"].tensors.items() if not v["pass"]} == {
        "o",
        "final_state",
    }
    for dump in ("call", "port"):
        done = subprocess.run(["carve", "verify", f"{dump}.safetensors"])
        assert done.returncode == 0


def test_the_page_on_torch_runs(capsys):
    pytest.importorskip("torch")
    names = {}
    assert run(parts()[1], names) == 3
    assert names["q"].grad is not None
    assert "parameters" in capsys.readouterr().out
