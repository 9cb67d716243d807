#!/usr/bin/env python3
"""What JAX programs do with GPU memory, for each way of XLA_PYTHON_CLIENT_* to take it (the environment says which)."""

import os

# Autotuning picks kernels by timing, which is not the same in any two runs.
os.environ["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0 " + os.environ.get("XLA_FLAGS", "")

import jax
import jax.numpy as jnp
import numpy
from jax import lax

from harness import Suite, require

MIB = 1 << 20
HOLD_MIB = int(os.environ.get("CLIENT_HOLD_MIB", "256"))
held = {}
suite = Suite(__doc__)


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def on_gpu():
    return jax.devices()[0]


@suite.check
def hold(seed):
    require(on_gpu().platform == "gpu", f"the first device is a {on_gpu().platform}")
    held["array"] = jax.random.bits(jax.random.key(seed), (HOLD_MIB * MIB // 4,), jnp.uint32)
    held["sum"] = int(held["array"].sum(dtype=jnp.uint32))
    return held["sum"]


@suite.check
def matmul(seed):
    one, two, three, four = keys(seed, 4)
    results = [jax.random.normal(one, (1024, 1536)) @ jax.random.normal(two, (1536, 768))]
    for dtype in (jnp.bfloat16, jnp.float16):
        results.append(jax.random.normal(three, (512, 2048), dtype) @ jax.random.normal(four, (2048, 1024), dtype))
    return results


@suite.check
def larger_than_vram(seed):
    @jax.jit
    def mix(count):
        numbers = lax.iota(jnp.uint32, 2 * HOLD_MIB * MIB // 4) + count
        numbers = numbers * jnp.uint32(1664525) + jnp.uint32(1013904223)
        return numbers ^ (numbers >> 13)

    numbers = mix(jnp.uint32(seed))
    flipped = numbers[::-1]
    require(bool((flipped[::-1] == numbers).all()), "flipping twice is not the same")
    return flipped[::4099], numbers.sum(dtype=jnp.uint32)


def perceptron(key, width, inner):
    one, two = jax.random.split(key)
    return [jax.random.normal(one, (width, inner)) / width**0.5, jax.random.normal(two, (inner, width)) / inner**0.5]


def loss_of(weights, inputs, targets):
    return jnp.mean((jnp.tanh(inputs @ weights[0]) @ weights[1] - targets) ** 2)


@jax.jit
def adam_step(weights, first, second, step, inputs, targets):
    loss, gradients = jax.value_and_grad(loss_of)(weights, inputs, targets)
    first = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, first, gradients)
    second = jax.tree.map(lambda old, new: 0.999 * old + 0.001 * new * new, second, gradients)
    rate = 1e-3 * jnp.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    update = lambda weight, one, two: weight - rate * one / (jnp.sqrt(two) + 1e-8)
    return jax.tree.map(update, weights, first, second), first, second, loss


@suite.check
def training(seed):
    init, data = keys(seed, 2)
    weights = perceptron(init, 2048, 4096)
    first = second = jax.tree.map(jnp.zeros_like, weights)
    losses = []
    for step in range(1, 6):
        data, one, two = jax.random.split(data, 3)
        inputs, targets = jax.random.normal(one, (64, 2048)), jax.random.normal(two, (64, 2048))
        weights, first, second, loss = adam_step(weights, first, second, float(step), inputs, targets)
        losses.append(loss)
    return losses, weights


@suite.check
def convolution(seed):
    one, two = keys(seed, 2)
    images, kernel = jax.random.normal(one, (8, 3, 64, 64)), jax.random.normal(two, (32, 3, 3, 3))
    apply = lambda kernel: lax.conv_general_dilated(images, kernel, (2, 2), "SAME")
    return apply(kernel), jax.grad(lambda kernel: jnp.square(apply(kernel)).mean())(kernel)


@suite.check
def loops(seed):
    """scan, while, vmap and remat."""
    one, two = keys(seed, 2)
    weights, start = jax.random.normal(one, (256, 256)) / 16, jax.random.normal(two, (32, 256))
    step = lambda carry, _: (jnp.tanh(carry @ weights), carry.sum())
    scanned, sums = lax.scan(step, start, None, length=100)
    counted = lax.while_loop(lambda state: state[0] < 50, lambda state: (state[0] + 1, jnp.sin(state[1])), (0, start))[1]
    mapped = jax.vmap(lambda row: jnp.outer(row, row).sum(0))(start)
    remat = jax.grad(lambda inputs: jax.checkpoint(lambda rows: jnp.tanh(rows @ weights).sum())(inputs))(start)
    return scanned, sums, counted, mapped, remat


@suite.check
def donated_buffers(seed):
    grow = jax.jit(lambda array: array * 1.5 + 1, donate_argnums=0)
    array = jax.random.normal(jax.random.key(seed), (16 * MIB,))
    for _ in range(10):
        array = grow(array)
    return array


@suite.check
def linear_algebra(seed):
    one, two = keys(seed, 2)
    square = jax.random.normal(one, (128, 128)) + 50 * jnp.eye(128)
    right = jax.random.normal(two, (128, 4))
    solved = jnp.linalg.solve(square, right)
    require(bool(jnp.allclose(square @ solved, right, atol=1e-2)), "solve is wrong")
    values = jnp.linalg.svd(square, compute_uv=False)
    return solved, values, jnp.linalg.cholesky(square @ square.T), jnp.linalg.qr(square)[1]


@suite.check
def sort_fft_random(seed):
    one, two, three = keys(seed, 3)
    numbers = jax.random.randint(one, (MIB,), 0, 1 << 20)
    order = jnp.argsort(numbers, stable=True)
    require(bool((jnp.diff(numbers[order]) >= 0).all()), "the order does not sort")
    picked = jnp.zeros(1000, jnp.int32).at[numbers[:65536] % 1000].add(1)
    top = lax.top_k(jax.random.normal(three, (16, 10_000)), 50)
    return order, picked, top[0], jnp.fft.rfft2(jax.random.normal(two, (4, 256, 256)))


@suite.check
def attention(seed):
    query, key, value = (jax.random.normal(part, (2, 128, 8, 64), jnp.bfloat16) for part in keys(seed, 3))
    attend = lambda *parts: jax.nn.dot_product_attention(*parts, is_causal=True)
    return attend(query, key, value), jax.grad(lambda part: attend(part, key, value).astype(jnp.float32).sum())(query)


@suite.check
def transfers(seed):
    generator = numpy.random.default_rng(seed)
    for size in (1, 1000, 4097, 3 * MIB, 32 * MIB):
        data = generator.integers(0, 255, size, dtype=numpy.uint8)
        there = jax.device_put(data)
        require(numpy.array_equal(numpy.asarray(there), data), f"a round trip of {size} bytes changed the data")
        require(numpy.array_equal(numpy.asarray(there[::-1]), data[::-1]), f"{size} bytes reversed differ")
    return data


@suite.check
def allocation_churn(seed):
    """Arrays of many sizes come and go; what lives stays intact."""
    generator = numpy.random.default_rng(seed)
    live = {}
    for step in range(150):
        slot = int(generator.integers(0, 12))
        if slot in live:
            array, value = live.pop(slot)
            require(bool((array == value).all()), f"step {step}: slot {slot} changed")
        live[slot] = (jnp.full(int(generator.integers(1, 4 * MIB)), step, jnp.int32), step)
    return [int(array.sum()) for array, _ in live.values()]


@suite.check
def out_of_memory(seed):
    try:
        # 2 TiB: more than any card, or card and RAM together.
        jnp.zeros((1 << 41,), jnp.uint8).block_until_ready()
    except Exception as error:
        require("RESOURCE_EXHAUSTED" in str(error) or "ut of memory" in str(error), f"refused otherwise: {error}")
        return jax.random.normal(jax.random.key(seed), (MIB,)) * 2
    raise AssertionError("2 TiB were given")


@suite.check
def held_is_intact(seed):
    require(int(held["array"].sum(dtype=jnp.uint32)) == held["sum"], "the array held from the start has changed")
    return held["array"]


if __name__ == "__main__":
    suite.main()
