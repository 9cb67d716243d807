#!/usr/bin/env python3
"""The linear layers of a LLaMA-7B-shaped model in fp16: 32 blocks, 12.95 GB of random weights.

Prints one line of JSON: a hash of the exact output bytes of every forward pass and seconds per forward
(CUDA events). Exit code 3 means: out of memory. With --tokens 1 every weight is read once per forward, as
in decoding; with --tokens 512 it is used many times, as in reading a prompt.
"""

import argparse
import hashlib

from program import exact_bytes, run

HIDDEN, INNER = 4096, 11008
SHAPES = {
    "q": (HIDDEN, HIDDEN),
    "k": (HIDDEN, HIDDEN),
    "v": (HIDDEN, HIDDEN),
    "o": (HIDDEN, HIDDEN),
    "gate": (INNER, HIDDEN),
    "up": (INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--forwards", type=int, default=5, help="forward passes that are timed")
    parser.add_argument("--warmup", type=int, default=1, help="forward passes before those")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def infer(options):
    import torch
    from torch.nn.functional import linear, silu

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    device = torch.device("cuda:0")
    generator = torch.Generator(device=device).manual_seed(options.seed)

    def random(*shape, std):
        return torch.empty(shape, dtype=torch.float16, device=device).normal_(0, std, generator=generator)

    def normalised(x):
        return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)).half()

    layers = [
        {name: random(*shape, std=0.02) for name, shape in SHAPES.items()} for _ in range(options.layers)
    ]
    start_tokens = random(options.tokens, HIDDEN, std=1.0)

    def forward():
        x = start_tokens
        for layer in layers:
            h = normalised(x)
            mixed = torch.tanh(linear(h, layer["q"])) * torch.sigmoid(linear(h, layer["k"])) + linear(h, layer["v"])
            x = x + linear(normalised(mixed), layer["o"])
            h = normalised(x)
            x = x + linear(normalised(silu(linear(h, layer["gate"])) * linear(h, layer["up"])), layer["down"])
        return x

    hashes, seconds = [], []
    with torch.inference_mode():
        for iteration in range(options.warmup + options.forwards):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            output = forward()
            end.record()
            torch.cuda.synchronize()
            if not bool(torch.isfinite(output).all()):
                raise ArithmeticError("the output is not finite: the comparison would mean nothing")
            hashes.append(hashlib.sha256(exact_bytes(output)).hexdigest())
            if iteration >= options.warmup:
                seconds.append(start.elapsed_time(end) / 1e3)
    weight_bytes = sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in layer.values())
    return {
        "outputs_sha256": hashes,
        "seconds": seconds,
        "weight_bytes": weight_bytes,
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "total_bytes": torch.cuda.mem_get_info()[1],
    }


def main():
    options = arguments()
    run({"program": "llama_layers", "tokens": options.tokens, "layers": options.layers}, lambda: infer(options))


if __name__ == "__main__":
    main()
