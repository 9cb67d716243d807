#!/usr/bin/env python3
"""CuPy's public API over each of its allocators: the wheel ships no tests, so this goes through it widely."""

import contextlib
import os

import cupy
import cupyx
import numpy

from harness import Skip, Suite, require

MIB = 1 << 20
HOLD_MIB = int(os.environ.get("CLIENT_HOLD_MIB", "256"))
held = {}


def before(seed):
    cupy.random.seed(seed)


suite = Suite(__doc__, before)


def randn(*shape, dtype=numpy.float32):
    return cupy.random.standard_normal(shape, dtype=dtype)


@contextlib.contextmanager
def allocator(allocate):
    """CuPy allocates with this (None: without a pool), and with the default pool again afterwards."""
    cupy.cuda.set_allocator(allocate)
    try:
        yield
    finally:
        cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


def workout(sizes=(1, 1000, 65_537, MIB, 5 * MIB)):
    """Arrays of several sizes live at once, some freed in between; a digest of what they hold."""
    live = [cupy.arange(size, dtype=cupy.int32) * 3 for size in sizes for _ in range(3)]
    del live[::3]
    live += [cupy.full(size, size, dtype=cupy.int32) for size in sizes]
    sums = [int(array.sum(dtype=cupy.int64)) for array in live]
    expected = [3 * size * (size - 1) // 2 for size in sizes for _ in range(2)] + [size * size for size in sizes]
    require(sums == expected, f"sums {sums}, expected {expected}")
    return sums, live[5] + live[4][: live[5].size].sum()


@suite.check
def managed_pool(seed):
    """Before anything else, while there is VRAM, and only a little: emuV gives managed memory no RAM."""
    pool = cupy.cuda.MemoryPool(cupy.cuda.malloc_managed)
    with allocator(pool.malloc):
        result = workout(sizes=(1, 1000, 65_537))
    pool.free_all_blocks()
    cupy.get_default_memory_pool().free_all_blocks()
    return result


@suite.check
def hold(seed):
    held["array"] = cupy.random.randint(0, 1 << 30, HOLD_MIB * MIB // 4, dtype=cupy.int32)
    held["sum"] = int(held["array"].sum(dtype=cupy.int64))
    return held["sum"]


@suite.check
def totals_agree(seed):
    free, total = cupy.cuda.runtime.memGetInfo()
    require(0 < free <= total, f"free {free}, total {total}")
    properties = cupy.cuda.runtime.getDeviceProperties(0)["totalGlobalMem"]
    require(abs(properties - total) <= total // 50, f"the properties say {properties} bytes, memGetInfo {total}")


@suite.check
def default_pool(seed):
    pool = cupy.get_default_memory_pool()
    used = pool.used_bytes()
    sums, kept = workout()
    require(pool.used_bytes() >= used + kept.nbytes, "an array that is held does not count as used")
    pool.free_all_blocks()
    require(workout() is not None and pool.total_bytes() >= used, "the pool does not work after giving all back")
    return sums


@suite.check
def no_pool(seed):
    with allocator(None):
        return workout()


@suite.check
def async_pool(seed):
    pool = cupy.cuda.MemoryAsyncPool()
    with allocator(pool.malloc):
        result = workout()
        require(pool.total_bytes() >= pool.used_bytes() >= 0, "the pool's statistics contradict each other")
        pool.free_all_blocks()
        return result, workout()


@suite.check
def pool_limit_and_out_of_memory(seed):
    pool = cupy.cuda.MemoryPool()
    pool.set_limit(size=64 * MIB)
    total = cupy.cuda.runtime.memGetInfo()[1]
    refused = 0
    with allocator(pool.malloc):
        for size in (65 * MIB, 2 * total):
            try:
                cupy.empty(size, dtype=cupy.uint8)
            except cupy.cuda.memory.OutOfMemoryError:
                refused += 1
    try:
        cupy.empty(2 * total, dtype=cupy.uint8)
    except cupy.cuda.memory.OutOfMemoryError:
        refused += 1
    require(refused == 3, f"{refused} of 3 impossible requests were refused")
    return workout()


@suite.check
def larger_than_vram(seed):
    numbers = cupy.arange(2 * HOLD_MIB * MIB // 4, dtype=cupy.uint32)
    numbers *= 1664525
    numbers += 1013904223
    numbers ^= numbers >> 13
    require(bool((numbers[::-1][::-1] == numbers).all()), "flipping twice is not the same")
    return numbers[::4099].copy(), numbers.sum(dtype=cupy.uint64)


@suite.check
def unowned_memory(seed):
    base = cupy.arange(MIB, dtype=cupy.int64)
    view = cupy.cuda.UnownedMemory(base.data.ptr + 800, 8 * 1000, base)
    array = cupy.ndarray(1000, cupy.int64, cupy.cuda.MemoryPointer(view, 0))
    array += 7
    require(int(base[100]) == 107 and int(base[1100]) == 1100, "the view and the array differ")
    return base


RAW = r"""
extern "C" __global__ void mix(unsigned *buffer, unsigned long long count, unsigned round) {
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
         i += (unsigned long long)gridDim.x * blockDim.x)
        buffer[i] = buffer[i] * 1664525u + 1013904223u + round;
}
extern "C" __global__ void chase(unsigned long long *out, unsigned long long head, unsigned steps) {
    for (unsigned step = 0; step < steps; ++step) head = *(unsigned long long *)head;
    *out = head;
}
__constant__ float weights[16];
extern "C" __global__ void weigh(float *buffer, unsigned count) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) buffer[i] *= weights[i % 16];
}
extern "C" __global__ void sample(float *out, cudaTextureObject_t texture, unsigned width, unsigned height) {
    unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x < width && y < height) out[y * width + x] = tex2D<float>(texture, x + 0.5f, y + 0.5f);
}
"""


@suite.check
def raw_kernels(seed):
    module = cupy.RawModule(code=RAW, backend="nvrtc")
    buffer = cupy.arange(3 * MIB, dtype=cupy.uint32)
    for round in range(5):
        module.get_function("mix")((256,), (256,), (buffer, numpy.uint64(buffer.size), numpy.uint32(round)))
    expected = numpy.arange(3 * MIB, dtype=numpy.uint32)
    for round in range(5):
        expected = expected * numpy.uint32(1664525) + numpy.uint32(1013904223 + round)
    require(numpy.array_equal(buffer.get(), expected), "the kernel computed something else than the CPU")
    pointer = module.get_global("weights")
    cupy.ndarray(16, cupy.float32, pointer)[...] = cupy.arange(16, dtype=cupy.float32)
    ones = cupy.ones(1000, dtype=cupy.float32)
    module.get_function("weigh")((4,), (256,), (ones, numpy.uint32(1000)))
    require(numpy.array_equal(ones.get(), numpy.arange(1000) % 16), "constant memory differs")
    return buffer


@suite.check
def pointers_in_memory(seed):
    nodes = [cupy.zeros(MIB // 8, dtype=cupy.uint64) for _ in range(50)]
    for node, following in zip(nodes, nodes[1:] + nodes[:1]):
        node[0] = following.data.ptr
    out = cupy.zeros(1, dtype=cupy.uint64)
    chase = cupy.RawModule(code=RAW, backend="nvrtc").get_function("chase")
    chase((1,), (1,), (out, numpy.uint64(nodes[0].data.ptr), numpy.uint32(1017)))
    require(int(out[0]) == nodes[17].data.ptr, "following stored pointers ended elsewhere")


@suite.check
def texture_and_array(seed):
    from cupy.cuda import texture

    height, width = 48, 100
    image = randn(height, width)
    layout = texture.ChannelFormatDescriptor(32, 0, 0, 0, cupy.cuda.runtime.cudaChannelFormatKindFloat)
    array = texture.CUDAarray(layout, width, height)
    array.copy_from(image)
    back = cupy.empty_like(image)
    array.copy_to(back)
    require(bool((back == image).all()), "a copy through a CUDA array changed the data")
    clamp = cupy.cuda.runtime.cudaAddressModeClamp
    sampler = texture.TextureDescriptor((clamp, clamp), cupy.cuda.runtime.cudaFilterModePoint,
                                        cupy.cuda.runtime.cudaReadModeElementType)
    resource = texture.ResourceDescriptor(cupy.cuda.runtime.cudaResourceTypeArray, cuArr=array)
    sample = cupy.RawModule(code=RAW, backend="nvrtc").get_function("sample")
    out = cupy.empty_like(image)
    arguments = (out, texture.TextureObject(resource, sampler), numpy.uint32(width), numpy.uint32(height))
    sample((1, height), (128, 1), arguments)
    require(bool((out == image).all()), "the texture shows other data")
    return out


@suite.check
def streams_and_events(seed):
    source = randn(2 * MIB)
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(4)]
    ready = cupy.cuda.Event()
    ready.record()
    parts = []
    for number, stream in enumerate(streams):
        stream.wait_event(ready)
        with stream:
            part = source * numpy.float32(number + 1)
            for _ in range(5):
                part = cupy.sin(part) + source
            parts.append(part)
    for stream in streams:
        stream.synchronize()
    return parts


@suite.check
def graph_capture(seed):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        buffer = cupy.arange(MIB, dtype=cupy.float32)
        cupy.multiply(buffer, 1.0, out=buffer)
        cupy.add(buffer, 1.0, out=buffer)
        stream.synchronize()
        stream.begin_capture()
        cupy.multiply(buffer, 0.5, out=buffer)
        cupy.add(buffer, 3.0, out=buffer)
        graph = stream.end_capture()
        for _ in range(50):
            graph.launch(stream)
        stream.synchronize()
    return buffer


@suite.check
def pinned_transfers(seed):
    host = cupyx.empty_pinned(4 * MIB, dtype=numpy.int32)
    host[...] = numpy.random.default_rng(seed).integers(0, 1 << 30, host.size)
    back = cupyx.zeros_pinned(4 * MIB, dtype=numpy.int32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        there = cupy.empty(host.size, dtype=cupy.int32)
        there.set(host, stream=stream)
        there.get(stream=stream, out=back)
    stream.synchronize()
    require(numpy.array_equal(host, back), "the round trip changed the data")
    return there


@suite.check
def copies_between_layouts(seed):
    array = cupy.random.randint(0, 255, (257, 513, 5)).astype(cupy.uint8)
    plain = array.get()
    require(numpy.array_equal(array[3:200:3, ::-2].T.get(), plain[3:200:3, ::-2].T), "a strided copy differs")
    array[::2, 5:, 3] = 9
    return cupy.ascontiguousarray(array.transpose(2, 0, 1)), cupy.concatenate([array, array[::-1]]), cupy.roll(array, 7)


@suite.check
def elementwise_and_fusion(seed):
    left, right = randn(MIB), randn(MIB)
    own = cupy.ElementwiseKernel("float32 a, float32 b", "float32 c", "c = a * b + 2 * a", "own_elementwise")
    squares = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = a", "0", "own_reduction")

    @cupy.fuse()
    def fused(one, two):
        return cupy.sqrt(one * one + two * two) * 3

    require(bool(cupy.allclose(fused(left, right), cupy.hypot(left, right) * 3, rtol=1e-4)), "a fused kernel is wrong")
    return own(left, right), squares(left), fused(left, right), cupy.where(left > 0, left, right), cupy.clip(left, -1, 1)


@suite.check
def reductions_and_sorting(seed):
    values = cupy.random.randint(0, 1 << 20, 3 * MIB)
    require(bool((cupy.diff(cupy.sort(values)) >= 0).all()), "sort does not sort")
    grid = values.reshape(3, 1024, 1024)
    return (grid.sum(axis=1), grid.max(axis=(0, 2)), grid.argmin(axis=2), cupy.unique(values), values.cumsum(),
            cupy.bincount(values % 100), cupy.lexsort(cupy.stack([values[:5000], values[5000:10_000]])),
            cupy.percentile(values.astype(cupy.float64), 30), cupy.searchsorted(cupy.sort(values), values[:100]))


@suite.check
def indexing(seed):
    table = randn(10_000, 64)
    index = cupy.random.randint(0, 10_000, 4096)
    counted = cupy.zeros(10_000, dtype=cupy.int32)
    cupyx.scatter_add(counted, index, 1)
    return table[index], table[table[:, 0] > 0], cupy.take(table, index, axis=0), counted, cupy.nonzero(table[:, 1] > 1)


@suite.check
def matrix_products(seed):
    half = randn(512, 1024).astype(cupy.float16)
    einsum = cupy.einsum("bij,bjk->bik", randn(4, 64, 32), randn(4, 32, 48))
    return randn(512, 1024) @ randn(1024, 768), half @ half.T, einsum, cupy.tensordot(randn(64, 32), randn(32, 16), axes=1)


@suite.check
def linear_algebra(seed):
    square = randn(128, 128, dtype=numpy.float64) + 50 * cupy.eye(128)
    right = randn(128, 4, dtype=numpy.float64)
    solved = cupy.linalg.solve(square, right)
    require(bool(cupy.allclose(square @ solved, right)), "solve is wrong")
    positive = square @ square.T
    values = cupy.linalg.svd(square, compute_uv=False)
    return (solved, values, cupy.linalg.cholesky(positive), cupy.linalg.qr(square)[1], cupy.linalg.eigvalsh(positive),
            cupy.linalg.inv(square), cupy.linalg.slogdet(square))


@suite.check
def fourier(seed):
    image = randn(4, 256, 256)
    require(bool(cupy.allclose(cupy.fft.irfft2(cupy.fft.rfft2(image)), image, atol=1e-4)), "the inverse differs")
    return cupy.fft.rfft2(image), cupy.fft.fft(randn(3, 10_007))


@suite.check
def sparse_matrices(seed):
    from cupyx.scipy import sparse

    dense = randn(1024, 1024) * (cupy.random.random((1024, 1024)) < 0.01)
    matrix = sparse.csr_matrix(dense)
    require(bool((matrix.toarray() == dense).all()), "dense and sparse differ")
    right = randn(1024, 16)
    # cuSPARSE may add in any order.
    require(bool(cupy.allclose(matrix @ right, dense @ right, atol=1e-3)), "the sparse product is wrong")
    return matrix.indices, matrix.T.tocsr().data, sparse.coo_matrix(dense).tocsc().indices


@suite.check
def signal_and_images(seed):
    from cupyx.scipy import ndimage

    image = randn(200, 300)
    return ndimage.gaussian_filter(image, 2), ndimage.median_filter(image, 3), cupy.convolve(randn(5000), randn(50))


@suite.check
def random_numbers(seed):
    generator = cupy.random.default_rng(seed)
    return (generator.random(MIB), generator.integers(0, 100, MIB), generator.standard_normal(MIB),
            cupy.random.permutation(100_000), cupy.random.uniform(size=1000))


@suite.check
def exchange_with_pytorch(seed):
    try:
        import torch
    except ImportError:
        raise Skip("PyTorch is not installed") from None
    array = cupy.arange(MIB, dtype=cupy.float32)
    tensor = torch.from_dlpack(array)
    tensor.mul_(2)
    torch.cuda.synchronize()
    require(float(array[100]) == 200, "PyTorch does not write to CuPy's memory")
    back = cupy.from_dlpack(torch.arange(MIB, device="cuda"))
    require(int(back.sum()) == MIB * (MIB - 1) // 2, "CuPy reads other data than PyTorch wrote")
    return array, back


@suite.check
def held_is_intact(seed):
    require(int(held["array"].sum(dtype=cupy.int64)) == held["sum"], "the array held from the start has changed")
    return held["array"]


if __name__ == "__main__":
    suite.main()
