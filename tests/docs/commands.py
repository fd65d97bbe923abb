"""Does every command that the pages list run?

commands.py HTML SOURCE BUILD: the lines of ```sh blocks of the Markdown files,
each run in the repository.  Those in NOT_HERE are named and left out, with the
reason.  Returns 77 where the program is not built.
"""

import os
import pathlib
import re
import subprocess
import sys

# Whole builds and runs of this very suite, and what needs other hardware.
NOT_HERE = {
    r"\./x (test|docs|bench|build|lint|prove|wheel)$": "runs for minutes",
    r"\./x lint\b": "needs two tools of version 14",
    r"carve-cuda-bench": "needs a GPU",
    r"^cmake --preset": "configures another build",
    r"^pip install": "installs",
    r"^pytest ": "needs the Python package",
    r"--cuda\b": "needs a GPU",
    r"^(ctest|cmake) ": "runs this suite",
    r"pytorch_loop": "needs PyTorch",
}


def commands(root):
    for path in sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")]):
        for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.S | re.M):
            for line in block.splitlines():
                if line.strip() and not line.startswith("#"):
                    yield path.relative_to(root), line.strip()


def main():
    source, build = map(pathlib.Path, sys.argv[2:4])
    if not (build / "bin/carve").exists():
        print("skipped: build/bin/carve is not built")
        sys.exit(77)
    # The pages say build/; this build may have another name.
    environment = dict(os.environ, CARVE_PAGES_TEST="1")
    failed, ran = 0, 0
    for page, line in commands(source):
        reason = next((r for p, r in NOT_HERE.items() if re.search(p, line)), None)
        if reason:
            print(f"{page}: not run, {reason}: {line}")
            continue
        here = line.replace("build/bin/", f"{build}/bin/")
        here = re.sub(r"^\./x verify", f"{build}/bin/carve verify", here)
        here = re.sub(r"^\./x prove", f"{build}/bin/carve-proofs", here)
        if here.endswith("carve verify"):
            here += " tests/dumps/gdn2_bf16.safetensors"
        program = here.split()[0]
        if program.startswith(str(build)) and not pathlib.Path(program).exists():
            print(f"{page}: not run, {program} is not built: {line}")
            continue
        done = subprocess.run(
            here, shell=True, cwd=source, env=environment, capture_output=True, text=True
        )
        ran += 1
        if done.returncode:
            failed += 1
            print(f"{page}: {line}: status {done.returncode}")
            print((done.stdout + done.stderr)[-1000:])
    print(f"{ran} commands run, {failed} failed")
    sys.exit(bool(failed) or ran == 0)


if __name__ == "__main__":
    main()
