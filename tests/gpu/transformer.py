#!/usr/bin/env python3
"""A small transformer trained with AdamW on synthetic data, the same bit for bit every time.

Prints one line of JSON: the losses as exact hexadecimal floats, a hash of the final weights and optimizer state,
seconds per iteration (CUDA events) and the memory that PyTorch reserved. Exit code 3 means: out of memory.
"""

import argparse
import hashlib

from program import exact_bytes, run


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iters", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def train(options):
    import torch
    from torch import nn

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(options.seed)
    # The deterministic form of attention; the others add up in an order of their own.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)

    device = torch.device("cuda:0")
    layer = nn.TransformerEncoderLayer(options.width, 16, 4 * options.width, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(
        nn.Embedding(8000, options.width), nn.TransformerEncoder(layer, options.layers, enable_nested_tensor=False),
        nn.Linear(options.width, 8000),
    ).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(options.seed)
    words = torch.randint(0, 8000, (options.batch, options.tokens + 1), generator=generator).to(device)

    losses, marks = [], []
    for _ in range(options.iters):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        optimizer.zero_grad(set_to_none=True)
        guesses = model(words[:, :-1])
        loss = nn.functional.cross_entropy(guesses.flatten(0, 1), words[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        end.record()
        losses.append(loss.detach())
        marks.append((start, end))
    torch.cuda.synchronize()

    state = hashlib.sha256()
    for parameter in model.parameters():
        state.update(exact_bytes(parameter))
        for _, value in sorted(optimizer.state[parameter].items()):
            state.update(exact_bytes(value))
    return {
        "losses": [float(loss).hex() for loss in losses],
        "state_sha256": state.hexdigest(),
        "seconds": [start.elapsed_time(end) / 1e3 for start, end in marks],
        "reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def main():
    options = arguments()
    run({"program": "transformer", "iters": options.iters}, lambda: train(options))


if __name__ == "__main__":
    main()
