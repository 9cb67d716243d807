#!/usr/bin/env python3
"""One process with two GPUs: tensors copied between them, a model whose layers lie on both, NCCL inside one process.

  multi_peers.py copies|pipeline|replicas [--steps N]

copies    tensors of many sizes and shapes there and back, in turn with work on more data than a budget may hold
pipeline  half of the layers on each GPU, activations and gradients cross between them; SGD with momentum
replicas  torch.nn.DataParallel: one process, threads, NCCL between the GPUs of this process
Prints one line of JSON: exact results, to be compared between runs, and median seconds. Exit code 3: out of memory.
"""

import argparse
import statistics

from multi_ranks import blocks, checksum, seeded, timed
from program import run


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("copies", "pipeline", "replicas"))
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args()


def copies(options):
    import torch

    results = []
    ballast = [[seeded((2048, 2048), 10 * gpu + i, f"cuda:{gpu}", 0.02) for i in range(100)] for gpu in range(2)]
    vectors = [seeded((64, 2048), 50 + gpu, f"cuda:{gpu}") for gpu in range(2)]
    sizes = [1, 1000, 1 << 18, (1 << 20) + 3, 8 << 20]
    for step in range(options.steps):
        for gpu in range(2):
            for index, weight in enumerate(ballast[gpu]):
                vectors[gpu] = torch.tanh(vectors[gpu] @ weight)
                weight.mul_(1.0 + 2.0**-12)
                if index % 20 == step % 20:
                    # A weight that has been out goes over and takes another one's place.
                    ballast[1 - gpu][index].copy_(weight)
        vectors = [vectors[1].to("cuda:0"), vectors[0].to("cuda:1")]
        for number, size in enumerate(sizes):
            there = seeded(size, step * 10 + number, f"cuda:{step % 2}")
            over = there.to(f"cuda:{1 - step % 2}", non_blocking=bool(number % 2))
            over.add_(1.0)
            results += checksum([over.to(f"cuda:{step % 2}")])
        # Not in one piece: a kernel reads the other GPU's memory.
        wide = seeded((1024, 1024), step, "cuda:0")
        results += checksum([wide.t()[::2].to("cuda:1"), wide[:, 1::3].to("cuda:1").contiguous()])
    results += checksum([*vectors, *ballast[0][:4], *ballast[1][-4:]])
    large = torch.empty(64 << 20, dtype=torch.uint8, device="cuda:0")
    target = torch.empty(64 << 20, dtype=torch.uint8, device="cuda:1")
    torch.cuda.set_device(0)
    seconds = statistics.median(timed(lambda _: target.copy_(large), 15))
    return {
        "results": results,
        "seconds": seconds,
        "gb_per_s": (64 << 20) / seconds / 1e9,
        "can_access": [torch.cuda.can_device_access_peer(0, 1), torch.cuda.can_device_access_peer(1, 0)],
    }


def pipeline(options):
    import torch

    model = blocks(16, 1024, 5)
    halves = [model[:8].to("cuda:0"), model[8:].to("cuda:1")]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    data = seeded((8, 256, 1024), 6, "cuda:0")
    losses = []

    def body(_):
        optimizer.zero_grad(set_to_none=True)
        loss = halves[1](halves[0](data).to("cuda:1")).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        # The next step is timed on the first GPU, which must not begin before the second is done.
        loss.to("cuda:0")

    seconds = timed(body, options.steps)
    torch.cuda.synchronize(1)
    return {"results": [float(loss).hex() for loss in losses] + checksum(model.parameters()), "seconds": statistics.median(seconds[3:] or seconds)}


def replicas(options):
    import torch

    model = torch.nn.DataParallel(blocks(6, 1024, 7).to("cuda:0"), device_ids=[0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    data = seeded((8, 256, 1024), 8, "cuda:0")
    losses = []

    def body(_):
        optimizer.zero_grad(set_to_none=True)
        loss = model(data).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    seconds = timed(body, options.steps)
    return {"results": [float(loss).hex() for loss in losses] + checksum(model.parameters()), "seconds": statistics.median(seconds[3:] or seconds)}


def body(options):
    import torch

    if torch.cuda.device_count() < 2:
        raise RuntimeError(f"needs two GPUs, there are {torch.cuda.device_count()}")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    outcome = globals()[options.what](options)
    outcome["peak_bytes"] = max(torch.cuda.max_memory_allocated(gpu) for gpu in range(2))
    return outcome


def main():
    options = arguments()
    run({"program": f"peers {options.what}"}, lambda: body(options))


if __name__ == "__main__":
    main()
