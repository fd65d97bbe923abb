"""Does every link lead somewhere?

links.py HTML SOURCE: every href and src of the built pages, with its anchor,
and every relative link of the Markdown files of the repository.  Prints what
is broken and returns 1; addresses on the web are not visited.
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


def main():
    site, source = map(pathlib.Path, sys.argv[1:3])
    if not (site / "index.html").exists():
        print("skipped: needs the built manual (./x docs)")
        sys.exit(77)
    broken = [*broken_in_site(site), *broken_in_sources(source)]
    for line in broken:
        print("broken link:", line)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
