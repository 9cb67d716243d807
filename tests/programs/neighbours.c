/* Small allocations lie side by side: a table of pointers beside what kernels are given that store no pointer. What those are
 * given is to go on moving; what the table leads to is found through it all the while.
 * Arguments: [buffers, default 10] [MiB of each, default 32] [rounds, default 10] */
#include "program.h"

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 10), bytes = argument(argc, argv, 2, 32) * MIB, rounds = argument(argc, argv, 3, 10);
    uint64_t count = bytes / 4;
    CUdeviceptr table, small, *buffer = calloc(buffers, sizeof *buffer);
    struct contents *contents = calloc(buffers, sizeof *contents);
    CHECK(buffers > 2 && buffer && contents, "nothing to do, or no memory");
    start_gpu();
    size_t before = settled_free_bytes();
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        contents[b] = filled((uint32_t)b);
        run_fill(buffer[b], count, (uint32_t)b);
    }
    OK(cuMemAlloc_v2(&small, 4096));
    OK(cuMemAlloc_v2(&table, 4096));
    OK(cuMemsetD32_v2(small, 0, 1024));
    void *pinned;
    OK(cuMemHostAlloc(&pinned, 4096, 0));
    uint64_t sum = 0, got;
    for (uint32_t round = 0; round < rounds; round++) {
        /* Two buffers by pointers that the host has brought, and they stay there. */
        size_t named[2] = {0, 1};
        CUdeviceptr pointers[2] = {buffer[named[0]], buffer[named[1]]};
        /* From pinned memory first: of that it is known what it brings before it comes. */
        OK(cuCtxSynchronize());
        memcpy(pinned, pointers, sizeof pointers);
        if (round % 2) {
            OK(cuMemcpyHtoD_v2(table, pointers, sizeof pointers));
        } else {
            OK(cuMemcpyHtoDAsync_v2(table, pinned, sizeof pointers, NULL));
        }
        run_batched_mix_on(NULL, table, 2, count, round);
        for (int i = 0; i < 2; i++) contents[named[i]] = mixed(contents[named[i]], round);
        /* The others openly, by a kernel that leaves a number beside the table; now and then one of those two as well. */
        for (size_t b = round % 3 ? 2 : 0; b < buffers; b++) {
            run_mix_on(NULL, buffer[b], count, round);
            contents[b] = mixed(contents[b], round);
            run_reduce_on(NULL, small, buffer[b], count);
            sum += reduce_contents(contents[b], count);
        }
    }
    OK(cuMemcpyDtoH_v2(&got, small, sizeof got));
    CHECK(got == sum, "the sum is %llx, not %llx", (unsigned long long)got, (unsigned long long)sum);
    for (size_t b = 0; b < buffers; b++) {
        check_contents(buffer[b], count, contents[b], b);
        OK(cuMemFree_v2(buffer[b]));
    }
    OK(cuMemFree_v2(small));
    OK(cuMemFree_v2(table));
    OK(cuMemFreeHost(pinned));
    check_free_is(before);
    printf("neighbours: ok, %zu x %zu MiB, %zu rounds\n", buffers, bytes / MIB, rounds);
    return 0;
}
