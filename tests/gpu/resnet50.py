#!/usr/bin/env python3
"""ResNet-50 training on synthetic data, the same bit for bit every time.

Prints one line of JSON: the losses as exact hexadecimal floats, a hash of the final weights, seconds per
iteration (CUDA events) and the memory that PyTorch reserved. Exit code 3 means: out of memory.
"""

import argparse
import hashlib
import os

from program import exact_bytes, run


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iters", type=int, default=10, help="iterations that are timed")
    parser.add_argument("--warmup", type=int, default=2, help="iterations before those")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--allocator",
        choices=["native", "cudaMallocAsync"],
        default=None,
        help="PyTorch's allocator; left to the environment if not given",
    )
    return parser.parse_args()


def train(options):
    import torch
    import torchvision

    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor with NaN would add traffic that training does not have.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(options.seed)

    device = torch.device("cuda:0")
    model = torchvision.models.resnet50(weights=None).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(options.seed)
    images = torch.randn(options.batch, 3, 224, 224, generator=generator).to(device)
    labels = torch.randint(0, 1000, (options.batch,), generator=generator).to(device)

    losses, marks = [], []
    for iteration in range(options.warmup + options.iters):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        end.record()
        losses.append(loss.detach())
        marks.append((iteration, start, end))
    torch.cuda.synchronize()

    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(exact_bytes(tensor))
    return {
        "losses": [float(loss).hex() for loss in losses],
        "weights_sha256": weights.hexdigest(),
        "seconds": [start.elapsed_time(end) / 1e3 for i, start, end in marks if i >= options.warmup],
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "total_bytes": torch.cuda.mem_get_info()[1],
    }


def main():
    options = arguments()
    # Must be set before CUDA starts.
    if options.allocator is not None:
        os.environ["PYTORCH_ALLOC_CONF"] = "backend:" + options.allocator
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "backend:" + options.allocator
    run({"program": "resnet50", "batch": options.batch, "iters": options.iters}, lambda: train(options))


if __name__ == "__main__":
    main()
