"""A list of named checks, one line of output each, so that two runs can be compared check by check.

  PASS name DIGEST     the results as bytes, hashed: equal digests are equal bits
  PASS name ~          right within a tolerance; its bits may differ from run to run
  FAIL name reason
  SKIP name reason     what the check needs is not installed, or it cannot be asked of this allocator
  TOTAL n passed m failed k skipped

Standard error says what started when, and on SIGTERM where each thread stood.
"""

import argparse
import faulthandler
import hashlib
import signal
import sys
import time
import traceback
import zlib


class Skip(Exception):
    """Raised by a check that cannot be asked here."""


class Suite:
    """The checks of one client, in the order in which they are written."""

    def __init__(self, description, before=None):
        self.description = description
        self.before = before
        self.checks = []

    def check(self, function):
        """A check whose result must be the same bit for bit in every run with the same seed."""
        self.checks.append((function, True))
        return function

    def close(self, function):
        """A check that compares with a tolerance itself."""
        self.checks.append((function, False))
        return function

    def main(self):
        parser = argparse.ArgumentParser(description=self.description.splitlines()[0])
        parser.add_argument("--seed", type=int, default=1)
        parser.add_argument("names", nargs="*", help="only these checks")
        options = parser.parse_args()
        faulthandler.register(signal.SIGTERM, chain=True)
        print(f"seed {options.seed}", flush=True)
        counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
        for function, exact in self.checks:
            name = function.__name__
            if options.names and name not in options.names:
                continue
            print(f"-- {name} ...", file=sys.stderr, flush=True)
            start = time.monotonic()
            word, detail = self.run(function, exact, seed_of(options.seed, name))
            counts[word] += 1
            print(f"-- {name}: {word} after {time.monotonic() - start:.2f} s", file=sys.stderr, flush=True)
            print(word, name, detail, flush=True)
        print(f"TOTAL {sum(counts.values())} passed {counts['PASS']} failed {counts['FAIL']} skipped {counts['SKIP']}")
        sys.stdout.flush()
        sys.exit(1 if counts["FAIL"] else 0)

    def run(self, function, exact, seed):
        try:
            if self.before:
                self.before(seed)
            result = function(seed)
            return "PASS", digest(result) if exact else "~"
        except Skip as reason:
            return "SKIP", one_line(reason)
        except Exception as error:
            traceback.print_exc()
            return "FAIL", one_line(f"{type(error).__name__}: {error}")


def seed_of(seed, name):
    """Another seed for each check, so that leaving one out does not change the next."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % (1 << 31)


def one_line(text):
    return " ".join(str(text).split())[:200] or "no reason given"


def digest(value):
    state = hashlib.sha256()
    feed(state, value)
    return state.hexdigest()[:24]


def feed(state, value):
    """Hashes numbers, texts, arrays of any framework, and nests of them, with their types and shapes."""
    if isinstance(value, dict):
        value = sorted(value.items())
    if isinstance(value, (list, tuple)):
        state.update(f"[{len(value)}".encode())
        for item in value:
            feed(state, item)
    elif value is None or isinstance(value, (bool, int, str)):
        state.update(repr(value).encode())
    elif isinstance(value, float):
        state.update(value.hex().encode())
    elif isinstance(value, bytes):
        state.update(value)
    else:
        array = host_array(value)
        state.update(f"{array.dtype}{array.shape}".encode())
        state.update(array.tobytes())


def host_array(value):
    if hasattr(value, "detach"):
        return TensorBytes(value)
    if hasattr(value, "copy_to_host"):
        return value.copy_to_host()
    if type(value).__module__.startswith("cupy"):
        return value.get()
    import numpy

    return numpy.asarray(value)


class TensorBytes:
    """A PyTorch tensor as bytes, since NumPy lacks some of PyTorch's types."""

    def __init__(self, tensor):
        import torch

        tensor = tensor.detach().cpu().resolve_conj().contiguous()
        self.dtype, self.shape = tensor.dtype, tuple(tensor.shape)
        flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        self.bytes = flat.flatten().view(torch.uint8).numpy().tobytes()

    def tobytes(self):
        return self.bytes


def require(condition, what):
    """An assertion that says what was expected."""
    if not condition:
        raise AssertionError(what)
