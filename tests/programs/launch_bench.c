/* What one launch costs the program: nanoseconds per cuLaunchKernel of a kernel that does almost nothing,
 * as the median over several batches. Between batches the queue is drained, so that the time is the call's. The
 * percentiles are of single calls, with the clock's own cost in them.
 * Arguments: [launches per batch, default 1000] [batches, default 41] [buffers that exist meanwhile, default 64]
 * [MiB that exist besides and are not used, default 0: more than fits makes emuV track every launch] */
#include "program.h"

int main(int argc, char **argv) {
    size_t launches = argument(argc, argv, 1, 1000), batches = argument(argc, argv, 2, 41);
    size_t buffers = argument(argc, argv, 3, 64);
    size_t ballast_mib = argument(argc, argv, 4, 0);
    CHECK(launches > 0 && batches > 0, "nothing to measure");
    start_gpu();
    CUdeviceptr ballast = 0;
    if (ballast_mib) {
        OK(cuMemAlloc_v2(&ballast, ballast_mib * MIB));
        run_fill(ballast, ballast_mib * MIB / 4, 1);
    }
    /* Some live allocations: looking an argument up among them is part of the cost. */
    CUdeviceptr *block = malloc((buffers + 1) * sizeof *block);
    double *ns = malloc(batches * sizeof *ns), *call_ns = malloc(batches * launches * sizeof *call_ns);
    CHECK(block && ns && call_ns, "no memory");
    for (size_t i = 0; i <= buffers; i++) OK(cuMemAlloc_v2(&block[i], 2 * MIB));
    CUstream stream;
    OK(cuStreamCreate(&stream, 1));
    uint64_t count = 32;
    /* Once for the batches, once for the single calls: the clock is not free. */
    for (int single = 0; single < 2; single++) {
        for (size_t batch = 0; batch < batches; batch++) {
            double start = now_us(), before = start;
            for (size_t i = 0; i < launches; i++) {
                uint32_t round = (uint32_t)i;
                CUdeviceptr target = block[i % (buffers + 1)];
                void *parameters[] = {&target, &count, &round};
                OK(cuLaunchKernel(gpu.mix, 1, 1, 1, 32, 1, 1, 0, stream, parameters, NULL));
                if (single) {
                    double after = now_us();
                    call_ns[batch * launches + i] = (after - before) * 1e3;
                    before = after;
                }
            }
            if (!single) ns[batch] = (now_us() - start) * 1e3 / (double)launches;
            OK(cuStreamSynchronize(stream));
        }
    }
    size_t calls = batches * launches;
    qsort(ns, batches, sizeof *ns, ascending);
    qsort(call_ns, calls, sizeof *call_ns, ascending);
    printf("{\"launches\": %zu, \"batches\": %zu, \"median_ns\": %.0f, \"least_ns\": %.0f, \"most_ns\": %.0f, \"p50_ns\": %.0f, "
           "\"p99_ns\": %.0f}\n", launches, batches, ns[batches / 2], ns[0], ns[batches - 1], call_ns[calls / 2],
           call_ns[calls - calls / 100 - 1]);
    if (ballast) OK(cuMemFree_v2(ballast));
    for (size_t i = 0; i <= buffers; i++) OK(cuMemFree_v2(block[i]));
    OK(cuStreamDestroy_v2(stream));
    free(block);
    free(ns);
    free(call_ns);
    return 0;
}
