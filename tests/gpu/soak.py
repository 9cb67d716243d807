#!/usr/bin/env python3
"""Uses GPU memory in every way that PyTorch has, over and over for a given time, and watches that nothing drifts.

Each cycle makes weights larger than VRAM, runs layers over them forwards, trains a few steps, captures and replays a
graph, works on several streams with pinned copies, starts and ends threads, and gives everything back. What a cycle
computes depends on its kind alone, so each kind must give the same bits whenever it comes again. After each cycle the
free memory that the driver reports must be what it was after an early one of its kind, and so must the process's files,
threads and mappings; its resident memory may grow by no more than a part in ten. Prints one line of JSON.
"""

import argparse
import gc
import hashlib
import json
import os
import sys
import threading
import time

from program import ask_for_equal_bits, exact_bytes

KINDS = 3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--mib", type=int, default=768, help="weights of a cycle")
    parser.add_argument("--warmup", type=int, default=2 * KINDS, help="cycles before the first figures count")
    return parser.parse_args()


def figures(torch):
    """What the process and the driver hold now."""
    with open("/proc/self/status", encoding="ascii") as file:
        status = dict(line.split(":", 1) for line in file)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        mappings = sum(1 for _ in file)
    return {
        "free_bytes": torch.cuda.mem_get_info()[0],
        "resident_bytes": int(status["VmRSS"].split()[0]) << 10,
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
        "mappings": mappings,
    }


def cycle(torch, kind, mib):
    """One round of everything; gives a hash of what it computed."""
    generator = torch.Generator(device="cuda").manual_seed(kind + 1)
    side = (1024, 2048, 1536)[kind]
    count = max(3, (mib << 20) // (4 * side * side))

    def random(*shape):
        return torch.randn(shape, device="cuda", generator=generator)

    state = hashlib.sha256()
    weights = [random(side, side) / side**0.5 for _ in range(count)]
    x = random(64, side)
    for _ in range(4):
        for weight in weights:
            x = torch.tanh(x @ weight)
    state.update(exact_bytes(x))

    # Training: gradients and momentum beside the weights.
    model = torch.nn.ParameterList([torch.nn.Parameter(weight) for weight in weights[: count // 3]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        y = x.detach()
        for parameter in model:
            y = torch.relu(y @ parameter)
        y.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.update(exact_bytes(model[0]))

    # Several streams, with copies from and to pinned memory.
    host = torch.randn(side, side, generator=torch.Generator().manual_seed(kind)).pin_memory()
    streams = [torch.cuda.Stream() for _ in range(3)]
    parts = []
    torch.cuda.synchronize()
    for stream, weight in zip(streams, weights):
        with torch.cuda.stream(stream):
            part = (host.to("cuda", non_blocking=True) @ weight).to("cpu", non_blocking=True)
            parts.append(part)
    torch.cuda.synchronize()
    for part in parts:
        state.update(exact_bytes(part))

    # A graph, replayed.
    source, sums = random(side, side), torch.zeros(side, side, device="cuda")
    warm = torch.cuda.Stream()
    with torch.cuda.stream(warm):
        _ = source @ weights[0]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sums += source @ weights[0]
    for _ in range(10):
        graph.replay()
    torch.cuda.synchronize()
    state.update(exact_bytes(sums))
    del graph

    # Threads of their own, which come and go.
    results = [None] * 3

    def work(index):
        results[index] = (weights[index] @ weights[index]).sum(dtype=torch.float64).item()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state.update(repr(results).encode())
    return state.hexdigest()


def main():
    options = arguments()
    ask_for_equal_bits()
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    start = time.monotonic()
    hashes, early, cycles, complaints = {}, {}, 0, []
    while time.monotonic() - start < options.seconds or cycles < options.warmup + KINDS:
        kind = cycles % KINDS
        seen = cycle(torch, kind, options.mib)
        if hashes.setdefault(kind, seen) != seen:
            complaints.append(f"cycle {cycles}: other results than the first cycle of its kind")
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        last = figures(torch)
        cycles += 1
        if cycles <= options.warmup:
            early[kind] = last
    first = early[(cycles - 1) % KINDS]
    # PyTorch keeps threads and workspaces of its own; what matters is that their number does not grow.
    for key in ("threads", "files", "mappings"):
        if last[key] > first[key] + 8:
            complaints.append(f"{key}: {first[key]} after {options.warmup} cycles, {last[key]} after {cycles}")
    if last["free_bytes"] < first["free_bytes"] - (64 << 20):
        complaints.append(f"free memory: {first['free_bytes']} after {options.warmup} cycles, {last['free_bytes']} after {cycles}")
    if last["resident_bytes"] > first["resident_bytes"] * 1.1:
        complaints.append(f"resident memory: {first['resident_bytes']}, then {last['resident_bytes']}")
    error = "; ".join(complaints[:5]) or None
    outcome = {"program": "soak", "error": error, "cycles": cycles, "seconds": time.monotonic() - start,
               "hashes": [hashes[kind] for kind in sorted(hashes)], "first": first, "last": last}
    print(json.dumps(outcome), flush=True)
    sys.exit(1 if error else 0)


if __name__ == "__main__":
    main()
