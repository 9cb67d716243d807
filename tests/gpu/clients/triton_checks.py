#!/usr/bin/env python3
"""Triton kernels on PyTorch tensors: element-wise, reductions, tiles, atomics, pointers read from memory."""

import os

import torch
import triton
import triton.language as tl

from harness import Suite, require

DEVICE = "cuda:0"
MIB = 1 << 20
HOLD_MIB = int(os.environ.get("CLIENT_HOLD_MIB", "256"))
held = {}
suite = Suite(__doc__, torch.manual_seed)


def randn(*shape, **kind):
    return torch.randn(*shape, device=DEVICE, **kind)


@triton.jit
def add_kernel(out, left, right, count, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    tl.store(out + offsets, tl.load(left + offsets, mask=mask) + tl.load(right + offsets, mask=mask), mask=mask)


@triton.jit
def softmax_kernel(out, rows, width, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    values = tl.load(rows + row * width + columns, mask=columns < width, other=-float("inf"))
    values = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * width + columns, values / tl.sum(values, axis=0), mask=columns < width)


@triton.jit
def matmul_kernel(out, left, right, m, n, k, TILE: tl.constexpr, DEPTH: tl.constexpr):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, k, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        one = tl.load(left + rows[:, None] * k + depth[None, :], mask=(rows[:, None] < m) & (depth[None, :] < k), other=0.0)
        two = tl.load(right + depth[:, None] * n + columns[None, :], mask=(depth[:, None] < k) & (columns[None, :] < n), other=0.0)
        total += tl.dot(one, two)
    tl.store(out + rows[:, None] * n + columns[None, :], total, mask=(rows[:, None] < m) & (columns[None, :] < n))


@triton.jit
def histogram_kernel(counts, values, count, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    tl.atomic_add(counts + tl.load(values + offsets, mask=mask, other=0), 1, mask=mask)


@triton.jit
def through_pointers_kernel(addresses, out, BLOCK: tl.constexpr):
    """Reads tensors whose addresses lie in memory, as grouped matrix products do."""
    address = tl.load(addresses + tl.program_id(0))
    values = tl.load(address.to(tl.pointer_type(tl.int32)) + tl.arange(0, BLOCK))
    tl.store(out + tl.program_id(0), tl.sum(values, axis=0))


@suite.check
def hold(seed):
    held["tensor"] = torch.randint(0, 1 << 30, (HOLD_MIB * MIB // 4,), dtype=torch.int32, device=DEVICE)
    held["sum"] = int(held["tensor"].sum(dtype=torch.int64))
    return held["sum"]


def added(count):
    left, right = randn(count), randn(count)
    out = torch.empty_like(left)
    add_kernel[(triton.cdiv(count, 1024),)](out, left, right, count, BLOCK=1024)
    require(torch.equal(out, left + right), "Triton and PyTorch add differently")
    return out


@suite.check
def vector_add(seed):
    return added(1_000_003)


@suite.check
def vector_add_larger_than_vram(seed):
    return added(HOLD_MIB * MIB // 4 + 17)[::1021].clone()


@suite.check
def softmax(seed):
    rows = randn(2048, 781)
    out = torch.empty_like(rows)
    softmax_kernel[(2048,)](out, rows, 781, BLOCK=1024)
    require(torch.allclose(out, torch.softmax(rows, 1), atol=1e-6), "Triton's softmax is wrong")
    return out


@suite.check
def matmul(seed):
    left, right = randn(500, 1000, dtype=torch.float16), randn(1000, 700, dtype=torch.float16)
    out = torch.empty(500, 700, device=DEVICE)
    matmul_kernel[(triton.cdiv(500, 64), triton.cdiv(700, 64))](out, left, right, 500, 700, 1000, TILE=64, DEPTH=32)
    require(torch.allclose(out, left.float() @ right.float(), rtol=1e-2, atol=0.1), "Triton's product is wrong")
    return out


@suite.check
def atomics(seed):
    values = torch.randint(0, 512, (3 * MIB,), dtype=torch.int32, device=DEVICE)
    counts = torch.zeros(512, dtype=torch.int32, device=DEVICE)
    histogram_kernel[(triton.cdiv(3 * MIB, 1024),)](counts, values, 3 * MIB, BLOCK=1024)
    require(torch.equal(counts.long(), values.long().bincount(minlength=512)), "atomic additions were lost")
    return counts


@suite.check
def pointers_in_memory(seed):
    tensors = [torch.randint(0, 1000, (1024 + 2 * MIB,), dtype=torch.int32, device=DEVICE) for _ in range(32)]
    addresses = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=DEVICE)
    out = torch.empty(32, dtype=torch.int32, device=DEVICE)
    through_pointers_kernel[(32,)](addresses, out, BLOCK=1024)
    expected = torch.stack([tensor[:1024].sum() for tensor in tensors])
    require(torch.equal(out.long(), expected), "memory reached through stored addresses differs")
    return out


@suite.check
def in_a_graph(seed):
    left, right = randn(MIB), randn(MIB)
    out = torch.empty_like(left)
    launch = lambda: add_kernel[(MIB // 1024,)](out, left, right, MIB, BLOCK=1024)
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
        left.copy_(out)
    for _ in range(20):
        graph.replay()
    return out


@suite.check
def held_is_intact(seed):
    require(int(held["tensor"].sum(dtype=torch.int64)) == held["sum"], "the tensor held from the start has changed")
    return held["tensor"]


if __name__ == "__main__":
    suite.main()
