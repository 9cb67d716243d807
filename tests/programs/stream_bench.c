/* What memory made of emuV's chunks costs the GPU itself: GB/s of a kernel that reads many large blocks one after
 * the other, timed on the host around whole passes, so that the GPU and nothing else is the limit.
 * Arguments: [MiB per block, default 86] [blocks, default 64] [passes, default 21] */
#include "program.h"

int main(int argc, char **argv) {
    size_t bytes = argument(argc, argv, 1, 86) * MIB, blocks = argument(argc, argv, 2, 64);
    size_t passes = argument(argc, argv, 3, 21);
    CHECK(bytes > 0 && blocks > 0 && passes > 0, "nothing to measure");
    start_gpu();
    CUdeviceptr *block = malloc(blocks * sizeof *block), sum;
    double *rate = malloc(passes * sizeof *rate);
    CHECK(block && rate, "no memory");
    uint64_t count = bytes / 4, zero = 0;
    OK(cuMemAlloc_v2(&sum, sizeof zero));
    OK(cuMemcpyHtoD_v2(sum, &zero, sizeof zero));
    for (size_t b = 0; b < blocks; b++) {
        OK(cuMemAlloc_v2(&block[b], bytes));
        run_fill(block[b], count, (uint32_t)b);
    }
    OK(cuCtxSynchronize());
    for (size_t pass = 0; pass < passes; pass++) {
        double start = now_us();
        for (size_t b = 0; b < blocks; b++) run_reduce_on(NULL, sum, block[b], count);
        OK(cuCtxSynchronize());
        rate[pass] = (double)(bytes * blocks) / (now_us() - start) / 1e3;
    }
    qsort(rate, passes, sizeof *rate, ascending);
    printf("{\"bytes\": %zu, \"passes\": %zu, \"median_gb_per_s\": %.1f, \"least\": %.1f, \"most\": %.1f}\n", bytes * blocks, passes,
           rate[passes / 2], rate[0], rate[passes - 1]);
    for (size_t b = 0; b < blocks; b++) OK(cuMemFree_v2(block[b]));
    OK(cuMemFree_v2(sum));
    free(block);
    free(rate);
    return 0;
}
