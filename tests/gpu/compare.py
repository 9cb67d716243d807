#!/usr/bin/env python3
"""Judges the output of runs: each argument FILE holds what a program printed, its last line of JSON counts.

  compare.py same KEY[,KEY...] FILE FILE...   the values of these keys are equal in all files
  compare.py oom FILE                         the program ended for want of memory
  compare.py ok FILE                          it ended without an error
  compare.py median KEY FILE...               prints the median over all values of that key in all files
  compare.py ratio KEY FILE... -- FILE...     prints median(second group) / median(first group)
Of a list, KEY/2 counts the second half alone: what a program that repeats itself comes to.
Exit code 0 if so, 1 if not; one line says what was found.
"""

import json
import statistics
import sys


def outcome(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if line.startswith("{")]
    if not lines:
        sys.exit(f"{path}: the program printed no result")
    return json.loads(lines[-1])


def median(key, paths):
    values = []
    key, _, half = key.partition("/")
    for path in paths:
        value = outcome(path).get(key)
        value = value if isinstance(value, list) else [value]
        values += value[len(value) // 2 :] if half else value
    values = [value for value in values if isinstance(value, (int, float))]
    if not values:
        sys.exit(f"no {key} in {' '.join(paths)}")
    return statistics.median(values)


def same(keys, paths):
    first, *others = (outcome(path) for path in paths)
    for key in keys.split(","):
        if not first.get(key):
            return False, f"{key} is missing in {paths[0]}"
        for path, other in zip(paths[1:], others):
            if other.get(key) != first[key]:
                return False, f"{key} differs"
    return True, f"{keys} equal in {len(paths)} runs"


def is_error(value):
    """Programs in C print a number that is 0, those in Python a text that is null."""
    return value not in (None, 0)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    what, *rest = sys.argv[1:]
    if what == "same":
        good, words = same(rest[0], rest[1:])
    elif what == "oom":
        error = outcome(rest[0]).get("error")
        good = error == 2 or "out of memory" in str(error).lower()
        words = f"error: {error}"
    elif what == "ok":
        error = outcome(rest[0]).get("error")
        good, words = not is_error(error), f"error: {error}"
    elif what == "median":
        good, words = True, f"{median(rest[0], rest[1:]):.6g}"
    elif what == "ratio":
        split = rest.index("--")
        base, other = median(rest[0], rest[1:split]), median(rest[0], rest[split + 1 :])
        good, words = True, f"{other / base:.4f}  ({base:.6g} -> {other:.6g})"
    else:
        sys.exit(__doc__)
    print(words)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
