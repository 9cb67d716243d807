/* Buffers that are read in every round and hardly ever written: what lies in RAM already need not be copied there again. Some change
 * now and then, to what they held before among others; each round's sums are checked.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [rounds, default 24] */
#include "program.h"

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 12), bytes = argument(argc, argv, 2, 32) * MIB;
    size_t rounds = argument(argc, argv, 3, 24);
    CHECK(buffers > 1 && bytes > 0, "nothing to do");
    start_gpu();
    size_t before = settled_free_bytes();
    CUdeviceptr *buffer = malloc(buffers * sizeof *buffer), sums;
    uint64_t *expected = malloc(2 * buffers * sizeof *expected), *found = malloc(buffers * sizeof *found), count = bytes / 4;
    CHECK(buffer && expected && found, "no memory");
    OK(cuMemAlloc_v2(&sums, buffers * sizeof *found));
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        run_fill(buffer[b], count, (uint32_t)b);
        for (uint32_t version = 0; version < 2; version++)
            expected[2 * b + version] = reduce_filled((uint32_t)b + 1000 * version, count);
    }
    for (size_t round = 0; round < rounds; round++) {
        /* The third buffer is written anew in every eighth round: other contents, then those of before. */
        size_t version = round / 8 % 2;
        if (round % 8 == 0) run_fill(buffer[2 % buffers], count, (uint32_t)(2 % buffers + 1000 * version));
        OK(cuMemsetD8_v2(sums, 0, buffers * sizeof *found));
        for (size_t b = 0; b < buffers; b++) run_reduce_on(NULL, sums + 8 * b, buffer[b], count);
        OK(cuMemcpyDtoH_v2(found, sums, buffers * sizeof *found));
        for (size_t b = 0; b < buffers; b++)
            CHECK(found[b] == expected[2 * b + (b == 2 % buffers ? version : 0)], "buffer %zu in round %zu", b, round);
    }
    for (size_t b = 0; b < buffers; b++) OK(cuMemFree_v2(buffer[b]));
    OK(cuMemFree_v2(sums));
    check_free_is(before);
    printf("frozen: ok, %zu x %zu MiB, %zu rounds\n", buffers, bytes / MIB, rounds);
    return 0;
}
