/* What stream-ordered allocation costs the program when the pool has what is asked for: nanoseconds for one
 * cuMemAllocAsync and the cuMemFreeAsync that belongs to it, as medians over several batches, by size. A kernel
 * that does almost nothing uses the block in between (its launches alone are measured first), as programs do.
 * Arguments: [pairs per batch, default 500] [batches, default 41] */
#include "program.h"

static CUstream stream;

static void use(CUdeviceptr target) {
    uint64_t count = 32;
    uint32_t round = 1;
    void *parameters[] = {&target, &count, &round};
    OK(cuLaunchKernel(gpu.mix, 1, 1, 1, 32, 1, 1, 0, stream, parameters, NULL));
}

/* Median nanoseconds of a turn: a launch, with an allocation and a free around it if `bytes` are given. */
static double turn_ns(size_t bytes, CUdeviceptr otherwise, size_t pairs, size_t batches) {
    double *ns = malloc(batches * sizeof *ns);
    CHECK(ns, "no memory");
    for (size_t batch = 0; batch < batches; batch++) {
        double start = now_us();
        for (size_t i = 0; i < pairs; i++) {
            CUdeviceptr block = otherwise;
            if (bytes) OK(cuMemAllocAsync(&block, bytes, stream));
            use(block);
            if (bytes) OK(cuMemFreeAsync(block, stream));
        }
        ns[batch] = (now_us() - start) * 1e3 / (double)pairs;
        OK(cuStreamSynchronize(stream));
    }
    qsort(ns, batches, sizeof *ns, ascending);
    double median = ns[batches / 2];
    free(ns);
    return median;
}

int main(int argc, char **argv) {
    size_t pairs = argument(argc, argv, 1, 500), batches = argument(argc, argv, 2, 41);
    CHECK(pairs > 0 && batches > 0, "nothing to measure");
    start_gpu();
    OK(cuStreamCreate(&stream, 1));
    CUmemoryPool pool;
    uint64_t keep = UINT64_MAX;
    OK(cuDeviceGetDefaultMemPool(&pool, gpu.device));
    OK(cuMemPoolSetAttribute(pool, POOL_RELEASE_THRESHOLD, &keep));
    CUdeviceptr block;
    OK(cuMemAlloc_v2(&block, 2 * MIB));
    /* Some blocks are in use meanwhile, as in a real program. */
    CUdeviceptr held[200];
    for (size_t i = 0; i < 200; i++) OK(cuMemAllocAsync(&held[i], (i % 20 + 1) * 100000, stream));
    turn_ns(0, block, pairs, 3);
    double launch = turn_ns(0, block, pairs, batches);
    double small = turn_ns(4096, block, pairs, batches) - launch;
    double medium = turn_ns(700000, block, pairs, batches) - launch;
    double large = turn_ns(4 * MIB, block, pairs, batches) - launch;
    printf("{\"launch_ns\": %.0f, \"pair_4k_ns\": %.0f, \"pair_700k_ns\": %.0f, \"pair_4m_ns\": %.0f}\n", launch, small, medium,
           large);
    for (size_t i = 0; i < 200; i++) OK(cuMemFreeAsync(held[i], stream));
    OK(cuStreamSynchronize(stream));
    OK(cuMemFree_v2(block));
    OK(cuStreamDestroy_v2(stream));
    return 0;
}
