"""What does Doxygen read in place of a page's source?

The page with each {{name}} replaced by what the programs of docs/figures made,
and each arXiv number by a link to the paper.  Called by Doxygen for every
Markdown file: page_filter.py FOLDER FILE.  A name that nothing made becomes a
reference to a page that does not exist, which fails the build with that name.
"""

import pathlib
import re
import sys

made, page = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])


def value(match):
    name = match[1]
    if name.endswith(".svg"):
        if (made / name).exists():
            return rf"\htmlinclude[block] {name}"
    elif (made / f"{name}.txt").exists():
        return (made / f"{name}.txt").read_text().rstrip("\n")
    return f"@ref nothing_made_{name}"


text = page.read_text()
text = re.sub(r"\{\{([\w.]+)\}\}", value, text)
text = re.sub(
    r"(?<![\w./\[])(\d{4}\.\d{5})(?![\w\]])",
    r"[\1](https://arxiv.org/abs/\1)",
    text,
)
sys.stdout.write(text)
