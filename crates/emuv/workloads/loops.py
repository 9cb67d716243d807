"""Loops over memory alone: they separate the policies, and their bounds are simple."""

import torch

from harness import MIB, Workload


def _pieces(setting):
    """Buffers of 64 MiB that together reach the peak."""
    setting.no_offload("plain tensors")
    elements = 1024 if setting.tiny else 16 * MIB
    count = setting.count(4 * elements, 4 * MIB, least=2, tiny=3)
    high = 1 << 20
    return [
        torch.randint(-high, high, (elements,), dtype=torch.int32, device=setting.device, generator=setting.generator)
        for _ in range(count)
    ]


def _change(piece, state):
    """Reads and writes a whole buffer, in whole numbers: exact in whatever order. The state follows its contents."""
    piece.mul_(1664525).add_(1013904223)
    state.mul_(31).add_(piece[: state.numel()]).add_(piece[-state.numel() :])


def cyclic(setting):
    """Every buffer read and written in turn, then from the start again."""
    pieces = _pieces(setting)
    state = torch.zeros(512, dtype=torch.int32, device=setting.device)

    def step(_):
        for piece in pieces:
            _change(piece, state)
        return state

    return Workload(step, {"pieces": len(pieces)}, final=lambda: pieces)


def palindromic(setting):
    """Every buffer read and written in turn, and back again in reverse."""
    pieces = _pieces(setting)
    state = torch.zeros(512, dtype=torch.int32, device=setting.device)

    def step(_):
        for piece in pieces + pieces[::-1]:
            _change(piece, state)
        return state

    return Workload(step, {"pieces": len(pieces)}, passes=2, final=lambda: pieces)


def gemm(setting):
    """One activation multiplied by many square matrices, about as much work as the link brings data."""
    setting.no_offload("plain tensors")
    side = 64 if setting.tiny else 4096
    matrix_bytes = 2 * side * side
    matrices = [
        setting.normal(side, side, std=side**-0.5)
        for _ in range(setting.count(matrix_bytes, 5 * matrix_bytes, least=2, tiny=3))
    ]
    start = setting.normal(side, side)

    def step(iteration):
        with torch.inference_mode():
            x = start.roll(iteration, 0)
            for matrix in matrices:
                # Bounded, so that the numbers stay of one size however long the chain is.
                x = torch.tanh(x @ matrix) * 1.5
            return x[:4]

    return Workload(step, {"matrices": len(matrices)}, clean_bytes=len(matrices) * matrix_bytes)


def gather(setting):
    """Rows drawn at random from one large table, anew in every iteration."""
    setting.no_offload("plain tensors")
    width = 256
    rows = setting.count(2 * width, 64 * MIB, tiny=4096)
    draws = max(16, rows // 32)
    table = torch.empty(rows, width, dtype=setting.half, device=setting.device)
    for part in table.split(1 << 20):
        part.normal_(0, 1, generator=setting.generator)
    indices = torch.empty(draws, dtype=torch.int64, device=setting.device)
    # In pieces, so that the result of gathering takes little room.
    pieces = indices.split(max(1, draws // 16))

    def step(_):
        with torch.inference_mode():
            indices.random_(0, rows, generator=setting.generator)
            # Exact sums: the bits of the rows as whole numbers.
            sums = [table.index_select(0, piece).view(torch.int16).sum(0) for piece in pieces]
            return torch.stack(sums)

    # Of n rows, m draws miss a given one with probability (1 - 1/n)^m.
    touched = round(rows * (1 - (1 - 1 / rows) ** draws)) * 2 * width
    size = rows * 2 * width
    return Workload(step, {"rows": rows}, clean_bytes=size, random_bytes=size, touched_bytes=touched)
