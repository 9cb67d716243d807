#!/usr/bin/env python3
"""What emuV costs the GPU when everything fits: 32 LLaMA-7B-shaped fp16 blocks (12.95 GB), 512 tokens.

Prints one line of JSON. `seconds`: per forward pass of linear layers alone, five passes enqueued at once so that
the GPU and not the host is the limit. `graph_seconds`: the same as a CUDA graph, which leaves nothing but the
GPU's own time. `read_seconds`: a reduction over every weight.
"""

import json

import torch
from torch.nn.functional import linear

HIDDEN, INNER, LAYERS, TOKENS, ROUNDS, PASSES = 4096, 11008, 32, 512, 9, 5


def main():
    device = torch.device("cuda:0")
    generator = torch.Generator(device=device).manual_seed(1)

    def random(*shape, std):
        return torch.empty(shape, dtype=torch.float16, device=device).normal_(0, std, generator=generator)

    def block():
        names = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN)}
        names |= {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
        return {name: random(*shape, std=0.02) for name, shape in names.items()}

    layers = [block() for _ in range(LAYERS)]
    start_tokens = random(TOKENS, HIDDEN, std=1.0)

    def forward():
        x = start_tokens
        for layer in layers:
            linear(x, layer["q"]), linear(x, layer["k"])
            mixed = linear(linear(x, layer["v"]), layer["o"])
            linear(mixed, layer["gate"])
            x = linear(linear(mixed, layer["up"]), layer["down"]) * 1e-2

    def read():
        for layer in layers:
            for weight in layer.values():
                weight.view(torch.int16).sum()

    def seconds(work, passes):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(passes):
            work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / passes

    outcome = {"program": "linear_fit"}
    with torch.inference_mode():
        for _ in range(3):
            forward()
        outcome["seconds"] = [seconds(forward, PASSES) for _ in range(ROUNDS)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward()
        graph.replay()
        outcome["graph_seconds"] = [seconds(graph.replay, PASSES) for _ in range(ROUNDS)]
        read()
        outcome["read_seconds"] = [seconds(read, 3) for _ in range(ROUNDS)]
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
