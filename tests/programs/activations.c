/* A loop as of training: memory is had in a stream's order on the way forward, worked on, and worked on again and freed on the
 * way back. More than fits, so in each round most of it leaves VRAM and comes back, and what was freed holds nothing until it is had
 * again: that may be exchanged without a copy, and its address may still show memory that is another buffer's by then.
 * Arguments: [buffers, default 24] [MiB of each, default 16] [rounds, default 12] */
#include "program.h"

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 24), bytes = argument(argc, argv, 2, 16) * MIB, rounds = argument(argc, argv, 3, 12);
    uint64_t words = bytes / 4;
    CHECK(buffers > 1 && words > 0 && rounds > 0, "nothing to do");
    start_gpu();
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, gpu.device));
    uint64_t all = UINT64_MAX;
    OK(cuMemPoolSetAttribute(pool, POOL_RELEASE_THRESHOLD, &all));
    CUstream stream;
    OK(cuStreamCreate(&stream, STREAM_NON_BLOCKING));
    CUdeviceptr *buffer = calloc(buffers, sizeof *buffer), sum;
    uint64_t *got = calloc(buffers, sizeof *got);
    CHECK(buffer && got, "no memory");
    OK(cuMemAlloc_v2(&sum, buffers * 8));
    for (uint32_t round = 0; round < rounds; round++) {
        OK(cuMemsetD32_v2(sum, 0, buffers * 2));
        OK(cuCtxSynchronize());
        for (size_t b = 0; b < buffers; b++) {
            OK(cuMemAllocAsync(&buffer[b], bytes, stream));
            run_fill_on(stream, buffer[b], words, (uint32_t)b + round);
        }
        for (size_t b = buffers; b-- > 0;) {
            run_mix_on(stream, buffer[b], words, round);
            run_reduce_on(stream, sum + 8 * b, buffer[b], words);
            OK(cuMemFreeAsync(buffer[b], stream));
        }
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoH_v2(got, sum, buffers * 8));
        for (size_t b = 0; b < buffers; b++) {
            uint64_t expected = reduce_contents(mixed(filled((uint32_t)b + round), round), words);
            CHECK(got[b] == expected, "round %u, buffer %zu: the sum is %llx, not %llx", round, b, (unsigned long long)got[b],
                  (unsigned long long)expected);
        }
    }
    OK(cuMemFree_v2(sum));
    OK(cuStreamDestroy_v2(stream));
    printf("activations: ok, %zu x %zu MiB, %zu rounds\n", buffers, bytes / MIB, rounds);
    return 0;
}
