"""Are the pages spelled right?

spelling.py HTML SOURCE: codespell over the Markdown files, public headers and
the programs of docs/figures.  Returns 77 where there is no codespell.
"""

import pathlib
import shutil
import subprocess
import sys

# Names that look like misspellings.
WORDS = "dout,upto,te,fo,thi,ot,ans,oder,inout,nd,ths"


def main():
    if not shutil.which("codespell"):
        print("skipped: needs codespell (Debian: codespell)")
        sys.exit(77)
    source = pathlib.Path(sys.argv[2])
    files = [*source.glob("*.md"), *source.glob("docs/**/*.md")]
    files += [*source.glob("include/carve/*.hpp"), *source.glob("docs/figures/*")]
    done = subprocess.run(
        ["codespell", "-L", WORDS, *map(str, files)], capture_output=True, text=True
    )
    print(done.stdout, end="")
    print(f"{len(files)} files, status {done.returncode}")
    sys.exit(bool(done.returncode or done.stdout))


if __name__ == "__main__":
    main()
