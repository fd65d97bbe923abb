"""Does the page on Python do what it says?"""

import pathlib
import re
import subprocess

PAGE = pathlib.Path(__file__).parents[2] / "docs/python.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    assert len(blocks) == 8
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "pass  all 2 tensors are within" in said
    assert re.search(r"pass  \d+ vectors: (\d+) pass, 0 fail", said)
    assert "float64 ['dbeta', 'dg', 'dk', 'dq', 'dv', 'final_state', 'o']" in said
    assert "k: missing; family gdn needs" in said
    assert {t for t, v in names["report"].tensors.items() if not v["pass"]} == {
        "o",
        "final_state",
    }
    done = subprocess.run(["carve", "verify", "call.safetensors"])
    assert done.returncode == 0
