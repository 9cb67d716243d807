#!/usr/bin/env python3
"""Compares what a client printed plain and under emuV, check by check (the lines are described in harness.py).

Prints one row of the table; standard error gets one line per difference. Exit code 1 if something differs that
differences.txt does not explain, or if emuV's report of the run shows that the run proves nothing.
"""

import argparse
import fnmatch
import json
import pathlib
import re
import sys

RESULT = re.compile(r"^(PASS|FAIL|SKIP) (\S+) (.*)$")
COLUMNS = "{:<18} {:<8} {:>5} {:>6} {:>6} {:>6} {:>6} {:>12} {:>12} {:>7} {:>7}"
HEADER = COLUMNS.format(
    "client", "verdict", "run", "plain", "emuV", "same", "differ", "spilled MiB", "end MiB", "plain s", "emuV s"
)
WITHOUT_A_DIGEST = ("~", "-")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--header", action="store_true", help="print the table's head and nothing else")
    parser.add_argument("--client", default="")
    parser.add_argument("--plain", help="what the plain run printed")
    parser.add_argument("--emuv", help="what the run under emuV printed")
    parser.add_argument("--report", help="emuV's report of the run")
    parser.add_argument("--seconds", nargs=2, default=["-", "-"])
    parser.add_argument("--ends-empty", action="store_true", help="the program frees all that it takes")
    parser.add_argument("--plain-was-partial", action="store_true", help="what passed under emuV was not run plain")
    parser.add_argument("--differences", default=pathlib.Path(__file__).with_name("differences.txt"))
    return parser.parse_args()


def results(path):
    """What each check said, and whether the client came to its end."""
    found, complete = {}, False
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            match = RESULT.match(line.rstrip("\n"))
            if match:
                found[match[2]] = (match[1], match[3])
            complete = complete or line.startswith("TOTAL ")
    return found, complete


def explanations(path, client):
    """Pairs of a pattern of checks and the reason."""
    known = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                clients, checks, reason = line.split(None, 2)
                if fnmatch.fnmatchcase(client, clients):
                    known.append((checks, reason.strip()))
    return known


def explained(known, check):
    return next((reason for pattern, reason in known if fnmatch.fnmatchcase(check, pattern)), None)


def differ(one, other):
    if one is None or other is None or one[0] != other[0]:
        return True
    return one[0] == "PASS" and one[1] != other[1]


def say(result):
    if result is None:
        return "did not end"
    word, detail = result
    return word if detail in WITHOUT_A_DIGEST else f"{word} {detail}"


def devices(path):
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
    except (OSError, TypeError, ValueError):
        return None, 0
    processes = report["processes"]
    return [device for process in processes for device in process["devices"]], sum(
        process["internal_errors"] for process in processes
    )


def main():
    options = arguments()
    if options.header:
        print(HEADER)
        return 0
    (plain, plain_complete), (emuv, emuv_complete) = results(options.plain), results(options.emuv)
    known = explanations(options.differences, options.client)
    problems, notes, same, differing, unfinished, alone = [], [], 0, 0, 0, 0
    for check in [*plain, *(check for check in emuv if check not in plain)]:
        one, other = plain.get(check), emuv.get(check)
        if options.plain_was_partial and one is None and other[0] != "FAIL":
            alone += 1
            continue
        if not differ(one, other):
            same += 1
            if one[0] == "FAIL":
                notes.append(f"{check}: fails in both runs: {one[1]}")
            continue
        if None in (one, other) and not (plain_complete and emuv_complete):
            unfinished += 1
            continue
        differing += 1
        reason = explained(known, check)
        line = f"{check}: plain: {say(one)}; emuV: {say(other)}"
        if reason:
            notes.append(f"{line} (explained: {reason})")
        else:
            problems.append(line)
    if not options.plain_was_partial and not any(word == "PASS" for word, _ in plain.values()):
        problems.append("no check passed in the plain run")
    for complete, run in ((plain_complete, "plain run"), (emuv_complete, "run under emuV")):
        if not complete:
            problems.append(f"the {run} did not come to its end (ended by its time limit, or crashed: see its log)")
    if unfinished:
        problems.append(f"{unfinished} checks ended in one of the runs only, so they are not compared")
    if alone:
        notes.append(f"{alone} checks passed under emuV (or were skipped) and were not run plain")
    used, internal_errors = devices(options.report)
    spilled = end = "-"
    if not used:
        problems.append("emuV wrote no report of a process that used CUDA: the run was not under emuV")
    else:
        spilled_bytes = sum(device["spilled_bytes"] for device in used)
        end_bytes = sum(device["vram"]["used_bytes"] + device["ram"]["used_bytes"] for device in used)
        spilled, end = f"{spilled_bytes / 2**20:.1f}", f"{end_bytes / 2**20:.1f}"
        if spilled_bytes == 0:
            problems.append("nothing spilled: the run proves nothing")
        if options.ends_empty and end_bytes:
            problems.append(f"it frees all that it takes, but {end_bytes} bytes are still charged to it at the end")
        if internal_errors:
            problems.append(f"emuV counted {internal_errors} errors of its own")
    passed = lambda found: sum(word == "PASS" for word, _ in found.values())
    verdict = "FAIL" if problems else "ok"
    run = len(plain.keys() | emuv.keys())
    print(COLUMNS.format(options.client, verdict, run, passed(plain), passed(emuv), same, differing, spilled, end,
                         *options.seconds))
    for line in problems:
        print(f"{options.client}: PROBLEM {line}", file=sys.stderr)
    for line in notes:
        print(f"{options.client}: note {line}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
