"""Is a number of the book typed by hand?

numbers.py HTML SOURCE: decimals, percentages and powers of ten in the prose of
the chapters.  What follows from a computation is made by the build and stands
there as {{name}}; what is given is named below, with the reason.
"""

import pathlib
import re
import sys

GIVEN = {
    "04_decay.md": {"−0.5": "an input; 64 times it is taken by head"},
    "12_segments.md": {"−1.25": "by head, from the length of the key"},
    "13_precision.md": {
        "0.1": "the input of the table below",
        "−1.4": "a row of the table above; numeric.cpp holds the sentence to it",
    },
    "14_verify.md": {"1.5": "the limit; verdicts.cpp reads it from the reports"},
    "15_faults.md": {"5%": "a tolerance", "−1.4": "a row of chapter 13's table"},
}
NOT_PROSE = re.compile(
    r"\{\{.*?\}\}|^```.*?^```|\\f\$.*?\\f\$|\\f\[.*?\\f\]|`[^`\n]*`"
    r"|\]\([^)]*\)|\[?\b\d{4}\.\d{5}\b\]?|fla-core [\d.]+",
    re.S | re.M,
)
NUMBER = re.compile(r"−?\d+\.\d+(?:e[-+]?\d+)?|−?\d+(?:\.\d+)? ?%|\d+e[-+]?\d+")


def main():
    book = pathlib.Path(sys.argv[2]) / "docs/book"
    failures, chapters = 0, sorted(book.glob("[0-9]*.md"))
    for path in chapters:
        prose = NOT_PROSE.sub(" ", path.read_text())
        given = dict(GIVEN.get(path.name, {}))
        for number in set(NUMBER.findall(prose)):
            if not given.pop(number, None):
                print(f"{path.name}: {number} is typed by hand")
                failures += 1
        for number in given:
            print(f"{path.name}: {number} is not there any more")
            failures += 1
    print(f"{len(chapters)} chapters, {failures} failures")
    sys.exit(bool(failures) or not chapters)


if __name__ == "__main__":
    main()
