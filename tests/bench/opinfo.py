"""Every op and module that torch has samples of, at both levels against torch on the CPU (see tests/samples.py).

    python tests/bench/opinfo.py [--ops REGEX] [--json FILE] [--table] [--samples N] [--processes N]

Prints how many samples fall in each class, then a line for each way in which an op is not fine. `--table` prints the
counts as Markdown. Needs the package `expecttest`, which torch.testing needs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import time
import zlib
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO

import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))

from samples import CLASSES, FINE, Verdict, all_cases, judge, subjects

OP_SECONDS = 40.0  # of the processor, for one op; samples beyond it are not run


def of_one(name: str, subject: Any, count: int, pipe: Connection) -> None:
    """Judge every sample of one op, in a process of its own: an op may bring the process down."""
    torch.set_num_threads(1)
    until = time.process_time() + OP_SECONDS
    try:
        for case in all_cases(subject, count):
            if time.process_time() > until:
                pipe.send(asdict(Verdict(name, "", "", -1, "skipped", f"the op took more than {OP_SECONDS:.0f} s")))
                break
            pipe.send(asdict(case if isinstance(case, Verdict) else judge(case)))
    except Exception as error:
        pipe.send(asdict(Verdict(name, "", "", -1, "skipped", f"its samples cannot be made: {error!r}"[:300])))
    pipe.close()


def sweep(names: list[str], count: int, processes: int, stream: TextIO | None) -> list[dict[str, Any]]:
    every = subjects()
    context = multiprocessing.get_context("fork")
    waiting, running, found = sorted(names, key=lambda n: zlib.crc32(n.encode())), {}, []  # slow families apart
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop()
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=of_one, args=(name, every[name], count, send))
            process.start()
            send.close()
            running[receive] = (name, process)
        for pipe in wait(list(running)):
            try:
                found.append(pipe.recv())
                if stream:
                    print(json.dumps(found[-1]), file=stream, flush=True)
            except EOFError:
                name, process = running.pop(pipe)
                process.join()
                if process.exitcode:
                    why = f"the process ended with {process.exitcode}"
                    found.append(asdict(Verdict(name, "", "", -1, "CRASH", why)))
                    if stream:
                        print(json.dumps(found[-1]), file=stream, flush=True)
                if sys.stderr.isatty():
                    print(f"\r{len(names) - len(waiting)} of {len(names)} {name:60.60}", end="", file=sys.stderr)
    return found


def counts(results: list[dict[str, Any]], style: str) -> str:
    by_class = Counter(r["kind"] for r in results)
    ops = defaultdict(set)
    for r in results:
        ops[r["kind"]].add(r["op"])
    rows = [[c, by_class[c], len(ops[c])] for c in CLASSES if by_class[c]]
    rows.append(["all", len(results), len({r["op"] for r in results})])
    flags = Counter(f for r in results for f in set(r["flags"]))
    more = [[f, n, len({r["op"] for r in results if f in r["flags"]})] for f, n in sorted(flags.items())]
    return tabulate([*rows, *more], ["class", "samples", "ops"], style)


def lines(results: list[dict[str, Any]]) -> str:
    """One line per op, variant and class that is not fine: how many samples, and the first of them."""
    groups = defaultdict(list)
    for r in results:
        if r["kind"] not in FINE:
            groups[r["kind"], r["op"], r["variant"]].append(r)
    order = sorted(groups, key=lambda k: (-CLASSES.index(k[0]), k[1:]))
    return "\n".join(
        f"{kind}: {op} ({variant}) {len(rs)}x, #{rs[0]['index']} {rs[0]['dtype']} ({rs[0]['text'][:120]}): "
        f"{rs[0]['detail']}"
        for kind, op, variant in order
        for rs in [groups[kind, op, variant]]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", default="", help="only ops whose name this expression finds")
    parser.add_argument("--json", type=Path, help="write every verdict here, one JSON object a line")
    parser.add_argument("--table", action="store_true", help="the counts alone, as Markdown")
    parser.add_argument("--samples", type=int, default=4, help="of an op, in float32")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    names = [n for n in subjects() if re.search(options.ops, n)]
    with options.json.open("w", encoding="utf-8") if options.json else nullcontext() as stream:
        results = sweep(names, options.samples, options.processes, stream)
    print(counts(results, "github" if options.table else "simple"))
    if not options.table:
        print(lines(results))


if __name__ == "__main__":
    main()
