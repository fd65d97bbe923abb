"""What does Doxygen read in place of a page's source?

The page with each {{name}} replaced by what the programs of docs/figures made,
each arXiv number by a link to the paper, each claim's name by a link to its
section of the ledger, and each link to another page by one to that very file:
Doxygen would take one of the same name beside the folder that it runs in.  Called by Doxygen for every Markdown file:
page_filter.py FOLDER FILE.  A name that nothing made, and a claim that the
ledger lacks, become references to what does not exist, which fails the build
with that name.

What this Doxygen's Markdown reads otherwise than others do is written so that
both agree: bold text with a quotation mark or a formula at its end, code in a
heading or with an apostrophe, and two dashes before a word.
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


def claim(match):
    group, number = match[1], match[2]
    return f'@ref claim_{group.lower()}_{number} "{match[0]}"'


def prose(text):
    """Everything of a page but code, formulas and links."""
    text = re.sub(r"\*\*(\S.*?)\*\*", r"<b>\1</b>", text, flags=re.S)
    parts = re.split(
        r"(`[^`\n]+`|\\f\$.*?\\f\$|\\f\[.*?\\f\]|\]\([^)\s]*\)|\{#\w+\}"
        r"|^\\\w+[^\n]*$|[\\@]ref \w[\w.]*(?: \"[^\"]*\")?)",
        text,
        flags=re.S | re.M,
    )
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<![\w-])--(?=[a-z])", r"\\--", parts[i])
        parts[i] = re.sub(
            r"(?<![\w./\[])(\d{4}\.\d{5})(?![\w\]])",
            r"[\1](https://arxiv.org/abs/\1)",
            parts[i],
        )
        parts[i] = re.sub(
            r"(?<![\w/`-])(WY|RED|GRAD|SEG|STAB|CAP|EFF|NUM)-(\d+)(?![\w-])",
            claim,
            parts[i],
        )
    for i in range(1, len(parts), 2):
        link = re.fullmatch(r"\]\(([\w./]*\.md)\)", parts[i])
        if link and (page.parent / link[1]).exists():
            parts[i] = f"]({(page.parent / link[1]).resolve()})"
        if parts[i].startswith("`") and "'" in parts[i]:
            parts[i] = f"``{parts[i][1:-1]}``"
    return "".join(parts)


text = re.sub(r"\{\{([\w.]+)\}\}", value, page.read_text())
# Code stands between fences, or is indented.
blocks = re.split(r"(^```.*?^```$|^(?:    [^\n]*\n)+)", text, flags=re.S | re.M)
for i in range(0, len(blocks), 2):
    # Headings name things and hold no links.
    pieces = re.split(r"(^#+ .*$)", blocks[i], flags=re.M)
    pieces[::2] = map(prose, pieces[::2])
    pieces[1::2] = (heading.replace("`", "") for heading in pieces[1::2])
    blocks[i] = "".join(pieces)
sys.stdout.write("".join(blocks))
