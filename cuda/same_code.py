#!/usr/bin/env python3
"""Did a change of the sources change the machine code, and what did it cost?

  cuda/same_code.py [--against REVISION] [--keep FOLDER] FILE.cu ...

compiles each file for sm_90a as it stands in the working tree and as it stood
at REVISION (HEAD), and compares the two kernel by kernel: the bytes of the
code, the registers and the spills that ptxas reports.  Exits 1 if a kernel's
code differs.  Compiled revisions are kept in FOLDER for the next comparison.
A file that has moved is given as OLD.cu:NEW.cu, paths from the top.
"""
import argparse
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["-O3", "-DNDEBUG", "-std=c++20", "-cubin", "-Xptxas", "-v",
         "-gencode=arch=compute_90a,code=sm_90a"]
# The name of a file's unnamed namespace holds a hash of its path.
UNNAMED = re.compile(r"\d+_GLOBAL__N__[0-9a-f]{8}_\d+_\w+?_cu_[0-9a-f]{8}")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True,
                          text=True).stdout


def code_of(cubin):
    """The bytes of each code section, by the kernel's name."""
    data = cubin.read_bytes()
    start, = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, start + i * size)
                for i in range(count)]
    at = sections[names][4]
    code = {}
    for name, _, _, _, offset, length in sections:
        text = data[at + name:data.index(b"\0", at + name)].decode()
        if text.startswith(".text."):
            code[text[6:]] = data[offset:offset + length]
    return code


def costs_of(log):
    """(registers, bytes of spill stores and loads) by the kernel's name."""
    costs, name, spills = {}, None, (0, 0)
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line):
            name = m[1]
        elif m := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill",
                            line):
            spills = int(m[1]), int(m[2])
        elif (m := re.search(r"Used (\d+) registers", line)) and name:
            costs[name] = (int(m[1]), *spills)
    return costs


def compiled(tree, file, folder):
    """[(name, code, costs)] of a file, names without their file's hash."""
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / (file.replace("/", "_") + ".cubin")
    log = cubin.with_suffix(".log")
    if not cubin.exists():
        run = subprocess.run(
            ["nvcc", *FLAGS, f"-I{tree}/include", f"-I{tree}/cuda", "-o",
             cubin, tree / file], capture_output=True, text=True)
        if run.returncode != 0:
            sys.exit(f"{file}:\n{run.stderr}")
        log.write_text(run.stderr)
    costs = costs_of(log.read_text())
    return {UNNAMED.sub("0", name): (code, costs.get(name))
            for name, code in code_of(cubin).items()}


def compare(old, new):
    # What changed its name (a type's, say) is known by its code.
    by_code = {}
    for name in old.keys() - new.keys():
        by_code.setdefault(old[name][0], []).append(name)
    same, differ, unmatched = 0, [], []
    for name, (code, cost) in new.items():
        was = old.get(name)
        if was is None and by_code.get(code):
            was = old[by_code[code].pop()]
        if was is None:
            unmatched.append(("new", name, len(code), cost))
        elif was[0] == code:
            same += 1
        else:
            differ.append((name, len(was[0]), len(code), was[1], cost))
    gone = [n for left in by_code.values() for n in left]
    print(f"  {len(new)} kernels: {same} the same, {len(differ)} differ, "
          f"{len(unmatched)} new, {len(gone)} gone")
    for name, before, after, cost, now in differ:
        print(f"  differs: {name}\n    bytes {before} -> {after}, registers "
              f"and spills {cost} -> {now}")
    for name in gone:
        print(f"  gone: {name} bytes {len(old[name][0])} {old[name][1]}")
    for kind, name, size, cost in unmatched:
        print(f"  {kind}: {name} bytes {size} {cost}")
    return not differ and not unmatched and not gone


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--against", default="HEAD", metavar="REVISION")
    options.add_argument("--keep", type=pathlib.Path, metavar="FOLDER")
    options.add_argument("files", nargs="+", metavar="FILE.cu")
    given = options.parse_args()
    revision = output("git", "-C", TOP, "rev-parse", given.against).strip()
    same = True
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        then = scratch / "then"
        then.mkdir()
        archive = subprocess.run(
            ["git", "-C", TOP, "archive", revision, "include", "cuda"],
            check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", then], input=archive, check=True)
        for pair in given.files:
            before, _, after = pair.partition(":")
            print(pair, flush=True)
            old = compiled(then, before, (given.keep or scratch) / revision)
            new = compiled(TOP, after or before, scratch / "now")
            same = compare(old, new) and same
    sys.exit(not same)


if __name__ == "__main__":
    main()
