#!/usr/bin/env python3
"""Several processes, each with a GPU of its own: NCCL all-reduce, DDP, FSDP and a tensor-parallel model.

  multi_ranks.py TASK[:STEPS][,TASK...] [--ranks N] [--visible all|own] [--steps N] [--dir DIR]

Tasks: allreduce, registered, captured, beside, ddp, wide (ddp, with data that keeps the GPU busy), fsdp, tensor. STEPS: of that task, instead of --steps. Started as it is,
it starts the ranks and prints one line of JSON: per task the results of every rank (exact, to be compared between runs), the
median seconds and the peak of what PyTorch allocated. What each rank has done so far stands in DIR/rankN.json, also when it is killed.
`--visible own`: each rank sees only its GPU, by UUID, as servers for inference do it; otherwise all, as torchrun does it.
Exit code: 0; 3 a rank ran out of memory, 1 another error; 2 a wrong argument.
"""

import argparse
import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from program import OUT_OF_MEMORY, ask_for_equal_bits

TASKS = ("allreduce", "registered", "captured", "beside", "ddp", "wide", "fsdp", "tensor")
SIZES = (8, 64 << 10, 1 << 20, 32 << 20, 256 << 20)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--visible", choices=("all", "own"), default="all")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dir", default=None)
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    given = [task.partition(":") for task in options.tasks.split(",")]
    options.tasks = [task for task, _, _ in given]
    options.steps_of = {task: int(steps) for task, _, steps in given if steps.isdigit()}
    for task, colon, steps in given:
        if task not in TASKS or colon and not steps.isdigit():
            parser.error(f"no task '{task}{colon}{steps}'; the tasks are {', '.join(TASKS)}")
    return options


# --- the ranks ------------------------------------------------------------------------------------------------


def checksum(tensors):
    """Exact: the sums of all bits, taken as whole numbers, and the first and last words themselves."""
    import torch

    sums = []
    for tensor in tensors:
        words = tensor.detach().contiguous().view(torch.int32).flatten()
        sums.append([int(words.sum(dtype=torch.int64)), int(words[::7].sum(dtype=torch.int64)), int(words[0]), int(words[-1])])
    return sums


def seeded(shape, seed, device, scale=1.0):
    import torch

    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(device)


def timed(body, rounds):
    """Seconds of each round, by CUDA events."""
    import torch

    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for round_number in range(rounds):
        body(round_number)
        marks[round_number + 1].record()
    torch.cuda.synchronize()
    return [marks[i].elapsed_time(marks[i + 1]) / 1e3 for i in range(rounds)]


def allreduce(options, rank, device):
    """Sums of seeded tensors, and the time of each size: the median over batches."""
    import torch
    import torch.distributed as dist

    results, seconds = [], {}
    for size in SIZES:
        tensor = seeded(max(size // 4, 2), 100 + rank, device)
        dist.all_reduce(tensor)
        results += checksum([tensor])
        batch, batches = (50, 101) if size <= 1 << 20 else (5, 11)
        work = torch.ones(max(size // 4, 2), device=device)

        def body(_, work=work, batch=batch):
            for _ in range(batch):
                dist.all_reduce(work)

        timed(body, 2)
        seconds[str(size)] = statistics.median(timed(body, batches)) / batch
    largest = str(SIZES[-1])
    return {"results": results, "seconds_by_size": seconds, "seconds": seconds[largest], "gb_per_s": SIZES[-1] / seconds[largest] / 1e9}


def registered(options, rank, device):
    """All-reduce in memory that NCCL allocated and has registered."""
    import torch
    import torch.distributed as dist

    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda", device))
    if not hasattr(backend, "register_mem_pool") or not hasattr(torch.cuda, "MemPool"):
        return {"skipped": "this PyTorch cannot register memory pools"}
    pool = torch.cuda.MemPool(backend.mem_allocator)
    with torch.cuda.use_mem_pool(pool):
        tensor = torch.empty(16 << 20, device=device)
    backend.register_mem_pool(pool)
    results = []
    for round_number in range(4):
        tensor.copy_(seeded(16 << 20, 200 + rank + 10 * round_number, device))
        dist.all_reduce(tensor)
        results += checksum([tensor])
    seconds = timed(lambda _: dist.all_reduce(tensor), 15)
    torch.cuda.synchronize()
    backend.deregister_mem_pool(pool)
    del tensor
    return {"results": results, "seconds": statistics.median(seconds)}


def captured(options, rank, device):
    """All-reduce as part of a graph, replayed with other data in the same memory."""
    import torch
    import torch.distributed as dist

    source = seeded(8 << 20, 300 + rank, device)
    tensor = torch.zeros_like(source)

    def body():
        tensor.copy_(source)
        tensor.mul_(0.5)
        dist.all_reduce(tensor)
        source.add_(tensor, alpha=0.125)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        body()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    results = []
    for _ in range(6):
        graph.replay()
        torch.cuda.synchronize()
        results += checksum([source, tensor])
    seconds = timed(lambda _: graph.replay(), 15)
    return {"results": results + checksum([source]), "seconds": statistics.median(seconds)}


def beside(options, rank, device):
    """All-reduce between passes over more data than the budget holds: what NCCL uses lies still while the rest moves."""
    import torch
    import torch.distributed as dist

    weights = [seeded((2048, 2048), 400 + i, device, 0.02) for i in range(120)]
    vector = seeded((64, 2048), 500 + rank, device)
    flat = seeded(4 << 20, 600 + rank, device)
    results = []

    def body(_):
        nonlocal vector
        for index, weight in enumerate(weights):
            vector = torch.tanh(vector @ weight)
            weight.mul_(1.0 + 2.0**-12)
            if index % 8 == 7:
                dist.all_reduce(vector)
                vector = vector * 0.5
                dist.all_reduce(flat)
                flat.mul_(0.5)

    seconds = timed(body, options.steps)
    results += checksum([vector, flat, weights[0], weights[-1]])
    return {"results": results, "seconds": statistics.median(seconds[2:] or seconds)}


def blocks(layers, width, seed):
    """A stack of residual blocks with attention, without anything whose gradient is summed in varying order."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mix = nn.Linear(width, 3 * width)
            self.out = nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            q, k, v = self.mix(self.before(x)).chunk(3, dim=-1)
            weights = torch.softmax(q @ k.transpose(-1, -2) * width**-0.5, dim=-1)
            x = x + self.out(weights @ v)
            return x + self.down(nn.functional.gelu(self.up(self.between(x))))

    torch.manual_seed(seed)
    return nn.Sequential(*(Block() for _ in range(layers)))


def train(model, options, rank, device, width, optimizer=None, batch=4):
    """Steps of AdamW on seeded data: losses, the exact state at the end, seconds per step."""
    import torch

    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = seeded((batch, 256, width), 700 + rank, device)
    losses = []

    def body(_):
        optimizer.zero_grad(set_to_none=True)
        loss = model(data).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    seconds = timed(body, options.steps)
    peak = torch.cuda.max_memory_allocated()
    state = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    return {
        "results": [float(loss).hex() for loss in losses] + checksum(state),
        "seconds": statistics.median(seconds[3:] or seconds),
        # Of the second half: by then movement has been learned.
        "late_seconds": statistics.median(seconds[len(seconds) // 2 :]),
        "seconds_by_step": [round(second, 5) for second in seconds],
        "peak_bytes": peak,
    }


def ddp(options, rank, device, batch=4):
    from torch.nn.parallel import DistributedDataParallel

    model = blocks(16, 1024, 1).to(device)
    model = DistributedDataParallel(model, device_ids=[device], gradient_as_bucket_view=True)
    return train(model, options, rank, device, 1024, batch=batch)


def wide(options, rank, device):
    return ddp(options, rank, device, batch=24)


def fsdp(options, rank, device):
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        return {"skipped": "this PyTorch has no fully_shard"}
    model = blocks(24, 1280, 2).to(device)
    for block in model:
        fully_shard(block)
    fully_shard(model)
    return train(model, options, rank, device, 1280)


def tensor(options, rank, device):
    """Each linear layer is split over the ranks: by columns, then by rows, with one sum in each direction."""
    import torch
    import torch.distributed as dist
    from torch import nn

    class Enter(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.contiguous()
            dist.all_reduce(gradient)
            return gradient

    class Leave(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x = x.contiguous()
            dist.all_reduce(x)
            return x

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    width, inner, ranks = 2048, 8192, options.ranks

    class Split(nn.Module):
        def __init__(self, seed):
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            up = torch.randn(inner, width, generator=generator) * 0.02
            down = torch.randn(width, inner, generator=generator) * 0.02
            self.up = nn.Parameter(up.chunk(ranks, 0)[rank].contiguous().to(device))
            self.down = nn.Parameter(down.chunk(ranks, 1)[rank].contiguous().to(device))

        def forward(self, x):
            inside = nn.functional.gelu(Enter.apply(x) @ self.up.t())
            return x + Leave.apply(inside @ self.down.t())

    model = nn.Sequential(*(Split(800 + layer) for layer in range(10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    # Every rank has the same data.
    return train(model, options, 0, device, width, optimizer=optimizer)


def rank_main(options):
    ask_for_equal_bits()
    # Each rank on cores of its own: where the threads of both land differs from run to run.
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // options.ranks
    if share:
        os.sched_setaffinity(0, cores[options.rank * share : (options.rank + 1) * share])
    started = time.monotonic()
    import torch
    import torch.distributed as dist

    rank = options.rank
    path = os.path.join(options.dir, f"rank{rank}.json")
    outcome = {"rank": rank, "error": None, "tasks": {}}

    def save():
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(outcome, file)
        os.replace(path + ".new", path)

    code = 0
    task = "start"
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        device = 0 if options.visible == "own" else rank
        torch.cuda.set_device(device)
        outcome["gpu"] = str(torch.cuda.get_device_properties(device).uuid)
        outcome["total_bytes"] = torch.cuda.get_device_properties(device).total_memory
        dist.init_process_group(
            "nccl", init_method=f"file://{options.dir}/rendezvous", rank=rank, world_size=options.ranks,
            timeout=datetime.timedelta(seconds=40), device_id=torch.device("cuda", device),
        )
        dist.barrier()
        outcome["versions"] = [torch.__version__, ".".join(map(str, torch.cuda.nccl.version())), torch.cuda.get_allocator_backend()]
        outcome["start_seconds"] = time.monotonic() - started
        save()
        for task in options.tasks:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            begun = time.monotonic()
            of_task = {**vars(options), "steps": options.steps_of.get(task, options.steps)}
            result = globals()[task](argparse.Namespace(**of_task), rank, device)
            result.setdefault("peak_bytes", torch.cuda.max_memory_allocated())
            result["took_seconds"] = round(time.monotonic() - begun, 2)
            outcome["tasks"][task] = result
            save()
            print(f"rank {rank}: {task} took {result['took_seconds']} s", file=sys.stderr, flush=True)
            dist.barrier()
        torch.cuda.synchronize()
        dist.destroy_process_group()
    except (RuntimeError, ImportError, AttributeError, TypeError) as error:
        words = str(error).strip().splitlines() or ["?"]
        outcome["error"] = f"{task}: {type(error).__name__}: {words[0]}"
        print(f"rank {rank}: {task}: {error}", file=sys.stderr, flush=True)
        code = OUT_OF_MEMORY if "out of memory" in str(error).lower() else 1
    save()
    sys.stdout.flush()
    # Not through the destructors: the other rank may be waiting in a collective that will never end.
    os._exit(code)


# --- the parent -----------------------------------------------------------------------------------------------


def gpu_uuids():
    """As nvidia-smi lists them: this process does not start CUDA."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [line.split("UUID: ")[1].split(")")[0] for line in listed.splitlines() if "UUID: GPU-" in line]


def main():
    options = arguments()
    if options.rank is not None:
        rank_main(options)
    with tempfile.TemporaryDirectory() as scratch:
        options.dir = os.path.abspath(options.dir or scratch)
        os.makedirs(options.dir, exist_ok=True)
        for left in os.listdir(options.dir):
            if left.startswith("rank") or left == "rendezvous":
                os.remove(os.path.join(options.dir, left))
        uuids = gpu_uuids() if options.visible == "own" else []
        ranks = []
        for rank in range(options.ranks):
            environment = dict(os.environ)
            # NVLink multicast off; the ranks meet on this host alone.
            environment.setdefault("NCCL_NVLS_ENABLE", "0")
            environment.setdefault("NCCL_SOCKET_IFNAME", "lo")
            environment.setdefault("NCCL_DEBUG", "WARN")
            if options.visible == "own":
                environment["CUDA_VISIBLE_DEVICES"] = uuids[rank]
            tasks = [f"{task}:{options.steps_of.get(task, options.steps)}" for task in options.tasks]
            command = [sys.executable, os.path.abspath(__file__), ",".join(tasks), "--ranks", str(options.ranks)]
            command += ["--visible", options.visible, "--steps", str(options.steps), "--dir", options.dir, "--rank", str(rank)]
            ranks.append(subprocess.Popen(command, env=environment, stdout=sys.stderr))
        codes = [None] * len(ranks)
        # Of ranks that fail together the first one says why; the other would wait for it until NCCL gives up.
        while None in codes:
            time.sleep(0.05)
            codes = [process.poll() for process in ranks]
            failed = [code for code in codes if code]
            if failed and None in codes:
                time.sleep(3)
                for process in ranks:
                    process.kill()
                codes = [process.wait() for process in ranks]
        found = []
        for rank in range(options.ranks):
            try:
                with open(os.path.join(options.dir, f"rank{rank}.json"), encoding="utf-8") as file:
                    found.append(json.load(file))
            except (OSError, ValueError):
                found.append({"rank": rank, "error": "it left no result", "tasks": {}})
    print(json.dumps(combined(options, found, codes)), flush=True)
    sys.exit(next((code if code in (1, OUT_OF_MEMORY) else 1 for code in codes if code), 0))


def combined(options, found, codes):
    """One object: exact results by task as `results_TASK`, the slowest rank's seconds, the largest peak."""
    errors = [rank["error"] for rank in found if rank["error"]]
    outcome = {"error": errors[0] if errors else None, "codes": codes, "start_seconds": [r.get("start_seconds") for r in found]}
    if not errors and any(codes):
        outcome["error"] = f"exit codes {codes}"
    outcome["versions"] = found[0].get("versions")
    outcome["gpus"] = [rank.get("gpu") for rank in found]
    for task in options.tasks:
        parts = [rank["tasks"].get(task) for rank in found]
        if not all(parts):
            continue
        skipped = [part["skipped"] for part in parts if "skipped" in part]
        if skipped:
            outcome[f"skipped_{task}"] = skipped[0]
            continue
        outcome[f"results_{task}"] = [part["results"] for part in parts]
        outcome[f"seconds_{task}"] = max(part["seconds"] for part in parts)
        if "late_seconds" in parts[0]:
            outcome[f"late_{task}"] = max(part["late_seconds"] for part in parts)
            outcome[f"steps_{task}"] = [max(seconds) for seconds in zip(*(part["seconds_by_step"] for part in parts))]
        outcome[f"peak_bytes_{task}"] = max(part["peak_bytes"] for part in parts)
        outcome[f"took_{task}"] = max(part["took_seconds"] for part in parts)
        for size, seconds in parts[0].get("seconds_by_size", {}).items():
            outcome[f"seconds_{task}_{size}"] = seconds
        if "gb_per_s" in parts[0]:
            outcome[f"gb_per_s_{task}"] = min(part["gb_per_s"] for part in parts)
    return outcome


if __name__ == "__main__":
    main()
