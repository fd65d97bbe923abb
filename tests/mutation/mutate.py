#!/usr/bin/env python3
"""Do the tests find faults?  Plants those of faults.py and runs the tests.

usage: mutate.py [--check] [--build DIR] [--report FILE] [--jobs N] [NUMBER...]

A copy of the sources is built once with every fault in it, each behind a
switch that the environment variable CARVE_FAULT turns on.  For each fault the
tests that faults.py names for its file run until one fails.  --report writes
the score and a row for each fault; the tests that killed them there last are
tried first.  With numbers only those faults are tried; the report keeps what
it says of the others.
--check only says whether every row fits the sources.  Exits 1 where a row does
not fit or a fault survives, 2 where the tests fail without one.
"""
import argparse
import concurrent.futures
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import faults

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
COPIED = ["cmake", "include", "reference", "tests"]
SECONDS = 300  # of CPU that a test may run, on a machine however busy

SWITCH = """#pragma once
#include <cstdlib>
#include <type_traits>
namespace carve_mutation {
inline const int active = [] {
  const char* const n = std::getenv("CARVE_FAULT");
  return n ? std::atoi(n) : 0;
}();
constexpr bool on(int n) {
  return !std::is_constant_evaluated() && active == n;
}
}  // namespace carve_mutation
"""


class Stale(Exception):
    """A row that does not fit."""


def pattern(text):
    """A regular expression for `text`, whatever blanks stand in it."""
    return r"\s*".join(re.escape(t) for t in re.findall(r"\w+|[^\w\s]", text))


def place(source, text):
    """Where the part of `text` that changes stands in `source`."""
    before, mark, rest = text.partition("@[")
    part, _, after = rest.rpartition("]@") if mark else (before, "", "")
    if not mark:
        before = ""
    joined = [f"(?P<{name}>{pattern(x)})" for name, x in
              (("a", before), ("part", part), ("b", after))]
    found = list(re.finditer(r"\s*".join(joined), source))
    if len(found) != 1:
        raise Stale(f"found {len(found)} times: {text}")
    return found[0].span("part")


def switched(part, changes):
    """`part` with each of its changes, (number, text), behind a switch."""
    if part.rstrip().endswith(";"):
        for number, text in changes:
            part = f"{{ if (carve_mutation::on({number})) {{ {text} }} " \
                   f"else {{ {part} }} }}"
        return part
    truth = all(text in ("true", "false") for _, text in changes)
    part = f"static_cast<bool>({part})" if truth else f"({part})"
    for number, text in changes:
        part = f"(carve_mutation::on({number}) ? ({text}) : {part})"
    return part


def edits():
    """For each file its places and what comes to stand there; and errors."""
    by_file, errors = {}, []
    for number, (file, _, text, faulty, _) in enumerate(faults.FAULTS, 1):
        with open(os.path.join(TOP, file), encoding="utf-8") as f:
            source = f.read()
        try:
            span = place(source, text)
        except Stale as e:
            errors.append(f"{file}: fault {number} {e}")
            continue
        by_file.setdefault(file, {}).setdefault(span, []).append(
            (number, faulty))
    for file, spans in by_file.items():
        ordered = sorted(spans)
        for x, y in zip(ordered, ordered[1:]):
            if y[0] < x[1]:
                errors.append(f"{file}: faults {spans[x]} and {spans[y]} "
                              "overlap")
    return by_file, errors


def write_changed(path, content):
    """Writes only what differs, so that little is compiled anew."""
    if os.path.exists(path):
        with open(path, "rb") as f:
            if f.read() == content:
                return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(content)


def with_faults(source, spans):
    for span in sorted(spans, reverse=True):
        source = (source[:span[0]]
                  + switched(source[span[0]:span[1]], spans[span])
                  + source[span[1]:])
    include, once = '#include "carve_mutation.hpp"\n', "#pragma once\n"
    if once in source:
        return source.replace(once, once + include, 1)
    return include + source


def copy_with_faults(by_file, to):
    files = [os.path.join(TOP, f) for f in ("CMakeLists.txt",
                                            "docs/tensors.md")]
    for name in COPIED:
        for folder, _, names in os.walk(os.path.join(TOP, name)):
            files += [os.path.join(folder, n) for n in names]
    for path in files:
        inner = os.path.relpath(path, TOP)
        with open(path, "rb") as f:
            content = f.read()
        if inner in by_file:
            content = with_faults(content.decode(), by_file[inner]).encode()
        write_changed(os.path.join(to, inner), content)
    write_changed(to + "/include/carve_mutation.hpp", SWITCH.encode())


def level():
    """The vector instructions of this machine, for which the walk is built."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            flags = f.read().split()
    except OSError:
        return ""
    return "avx512" if "avx512vl" in flags else \
        "avx2" if "avx2" in flags else ""


def build(to, jobs):
    targets = sorted({t.split()[0] for row in faults.FAULTS for t in row[1]})
    cache = shutil.which("ccache")
    options = ["-DCMAKE_BUILD_TYPE=Mutation", "-DCMAKE_CXX_FLAGS_MUTATION=-O1",
               "-DCARVE_CUDA=OFF", "-DCARVE_PROOFS=OFF",
               "-DCARVE_INSTALL=OFF", "-DCARVE_BUILD_SHARED=OFF",
               "-DCARVE_DIGITS=ON",
               "-DCARVE_LEVELS=" + level()]
    if cache:
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=" + cache)
    log = open(to + "/build.log", "w", encoding="utf-8")
    for command in (["cmake", "-G", "Ninja", "-S", to, "-B", to + "/build",
                     *options],
                    ["cmake", "--build", to + "/build", "-j", str(jobs),
                     "--target", *targets]):
        if subprocess.run(command, stdout=log, stderr=log).returncode != 0:
            sys.exit(f"mutate: the build failed, see {to}/build.log")


def run(to, number, test, case=""):
    """None where the test passes, else the name of the case that failed."""
    test, _, only = test.partition(" ")
    case = case or only
    words = [f"{to}/build/tests/{test}", "--abort"]
    if case:
        words.append(re.sub(r"([,\[\]])", r"\\\1", case))
    env = dict(os.environ, CARVE_FAULT=str(number))
    try:
        r = subprocess.run(words, env=env, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, timeout=20 * SECONDS,
                           text=True, errors="replace",
                           preexec_fn=lambda: resource.setrlimit(
                               resource.RLIMIT_CPU, (SECONDS, SECONDS + 1)))
    except subprocess.TimeoutExpired:
        return "it does not end"
    if r.returncode == -signal.SIGXCPU:
        return "it does not end"
    if r.returncode == 0 or "No test cases matched" in r.stdout:
        return None
    found = re.search(r"^-{40,}\n(.*?)\n-{40,}$", r.stdout, re.S | re.M)
    name = " ".join(found.group(1).split("\n  ")[0].split()) if found else ""
    return name or "it crashes"


def known_results(report):
    """For each row of the report, by file and sentence, its last cell."""
    known = {}
    if report and os.path.exists(report):
        with open(report, encoding="utf-8") as f:
            for line in f:
                cells = [c.strip() for c in line.strip().strip("|").split("|")]
                if len(cells) == 3:
                    known[(cells[0].strip("`"), cells[1])] = cells[2]
    return known


def killer_of(to, number, row, known):
    file, tests, _, _, says = row
    test, found, case = known.get((file, says), "").partition(" / ")
    if found and case not in ("it crashes", "it does not end") and \
            run(to, number, test, case):
        return test, case
    for test in tests:
        case = run(to, number, test)
        if case:
            return test.split()[0], case
    return None


def write_report(path, results):
    """Writes what came of each fault: of those tried now, and as it was."""
    known, same = known_results(path), faults.EQUIVALENT
    cells = []
    for row in faults.FAULTS:
        key = (row[0], row[4])
        if key in results:
            killer = results[key]
            cells.append(" / ".join(killer) if killer else
                         same.get(row[4], "**nothing**"))
        else:
            cells.append(known.get(key, "not tried"))
    living = cells.count("**nothing**")
    equal = sum(c in same.values() for c in cells)
    found = sum(c.partition(" / ")[0] in {t.split()[0] for t in row[1]}
                for row, c in zip(faults.FAULTS, cells))
    untried = len(cells) - found - living - equal
    lines = ["# Planted faults {#mutation}", "",
             "<!-- Written by `./x mutate`; the rows are those of "
             "tests/mutation/faults.py. -->", "",
             "Do the tests find a fault? Each row is one that `./x mutate` "
             "puts into the code,",
             "and the test that fails for it. Of "
             f"{len(cells)} faults {found} are found, {equal} change no "
             f"result, {living}",
             f"live, and {untried} have not been tried against these tests.", "",
             "| file | fault | found by |", "|---|---|---|"]
    lines += [f"| `{row[0]}` | {row[4]} | {cell} |"
              for row, cell in zip(faults.FAULTS, cells)]
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("--check", action="store_true")
    parse.add_argument("--build", default=os.path.join(TOP, "build/mutation"))
    parse.add_argument("--report")
    parse.add_argument("--jobs", type=int, default=os.cpu_count())
    parse.add_argument("numbers", type=int, nargs="*")
    given = parse.parse_args()
    by_file, errors = edits()
    sentences = [(row[0], row[4]) for row in faults.FAULTS]
    errors += [f"two rows say: {s}" for s in sorted(set(sentences))
               if sentences.count(s) > 1]
    errors += [f"no row says: {s}" for s in faults.EQUIVALENT
               if s not in {x[1] for x in sentences}]
    for e in errors:
        print("mutate:", e, file=sys.stderr)
    if errors or given.check:
        print(f"{len(faults.FAULTS)} faults, {len(errors)} errors")
        return 1 if errors else 0
    to = os.path.abspath(given.build)
    os.makedirs(to, exist_ok=True)
    copy_with_faults(by_file, to)
    build(to, given.jobs)
    numbers = given.numbers or range(1, len(faults.FAULTS) + 1)
    for test in sorted({t for n in numbers for t in faults.FAULTS[n - 1][1]}):
        case = run(to, 0, test)
        if case:
            print(f"mutate: {test} fails without a fault: {case}",
                  file=sys.stderr)
            return 2
    known = known_results(given.report)
    results, survivors = {}, 0
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        rows = [faults.FAULTS[n - 1] for n in numbers]
        for n, row, killer in zip(numbers, rows, pool.map(
                lambda x: killer_of(to, x[0], x[1], known),
                zip(numbers, rows))):
            results[row[0], row[4]] = killer
            if killer:
                continue
            survivors += row[4] not in faults.EQUIVALENT
            print(f"fault {n} lives: {row[0]}: {row[4]}", flush=True)
    print(f"{len(results)} faults, {survivors} survive")
    if given.report:
        write_report(given.report, results)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
