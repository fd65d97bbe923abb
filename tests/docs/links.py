"""Does every link lead somewhere?

links.py HTML SOURCE: every href and src of the built pages, with its anchor,
every relative link of the Markdown files of the repository, and the links at
the foot of each page of the book, which must lead through all of them in the
order of the contents and back.  Prints what is broken and returns 1; addresses
on the web are not visited.
"""

import html.parser
import pathlib
import re
import sys
import urllib.parse


class Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8", errors="replace"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if value is None:
                continue
            if name in ("id", "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.append(value)


def broken_in_site(root):
    pages = {p.resolve(): Page(p) for p in root.glob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target) or link.startswith("$"):
                continue
            where = path
            if target:
                where = (path.parent / urllib.parse.unquote(target)).resolve()
            if not where.exists():
                yield f"{path.name}: {link}"
            elif anchor and where in pages:
                if urllib.parse.unquote(anchor) not in pages[where].anchors:
                    yield f"{path.name}: {link} (no such anchor)"


def broken_in_sources(root):
    skipped = ("build", ".git", "node_modules")
    for path in root.rglob("*.md"):
        parts = path.relative_to(root).parts
        if any(p.startswith(skipped) for p in parts):
            continue
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        text = re.sub(r"^    .*$", "", text, flags=re.M)  # code too
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target = link.partition("#")[0]
            if re.match(r"[a-z]+:", link) or not target:
                continue
            if not (path.parent / target).exists():
                yield f"{path.relative_to(root)}: {link}"


def out_of_order(docs):
    text = (docs / "book/contents.md").read_text()
    order = ["mainpage", "book"]
    order += re.findall(r"^\|[^|]*\| @ref (\w+)", text, re.M)
    order += ["glossary", "papers", "book"]
    names = {}
    for path in [*docs.glob("*.md"), *docs.glob("book/*.md")]:
        title = re.match(r"# .*\{#(\w+)\}", path.read_text())
        if title:
            names[title[1]] = path
    for before, name, after in zip(order, order[1:], order[2:]):
        turn = re.search(r'\\turn\{(\w+)(?: "[^"]*")?,(\w+)\}', names[name].read_text())
        if not turn or turn.groups() != (before, after):
            yield f"{names[name].name}: at its foot not {before}, {after}"
    listed = {names[name] for name in order[1:]}
    for path in docs.glob("book/*.md"):
        if path not in listed:
            yield f"{path.name}: not in the contents"


def main():
    site, source = map(pathlib.Path, sys.argv[1:3])
    if not (site / "index.html").exists():
        print("skipped: needs the built manual (./x docs)")
        sys.exit(77)
    broken = [
        *broken_in_site(site),
        *broken_in_sources(source),
        *out_of_order(source / "docs"),
    ]
    for line in broken:
        print("broken link:", line)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
