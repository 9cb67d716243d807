/* Kernels that are given only the address of an array of pointers, as a batched matrix product is: the buffers that
 * they change are named in memory, never in an argument. The arrays come from the host, from a copy of another
 * array, and from a kernel; they change from launch to launch and point into the middle of buffers too.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [rounds, default 10] [seed] */
#include "program.h"

static uint64_t random_state;

/* `chosen` gets `count` different numbers below `of`, in any order. */
static void choose(size_t *chosen, size_t count, size_t of) {
    size_t *all = malloc(of * sizeof *all);
    CHECK(all && count <= of, "no memory");
    for (size_t i = 0; i < of; i++) all[i] = i;
    for (size_t i = 0; i < count; i++) {
        size_t other = i + next_random(&random_state) % (of - i), number = all[other];
        all[other] = all[i];
        chosen[i] = all[i] = number;
    }
    free(all);
}

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 12), bytes = argument(argc, argv, 2, 32) * MIB;
    size_t rounds = argument(argc, argv, 3, 10);
    random_state = seed_argument(argc, argv, 4);
    CHECK(buffers > 1 && bytes > 0, "nothing to do");
    start_gpu();
    size_t before = settled_free_bytes();
    /* Half of the buffers are allocations of their own; the other half are parts of one block. Each is in two
     * halves that change independently: a pointer to the second half points into the middle of something. */
    size_t single = buffers / 2, part = buffers - single, halves = 2 * buffers;
    uint64_t words = bytes / 8;
    CUdeviceptr block, tables, *half = malloc(halves * sizeof *half), *host_table = malloc(halves * sizeof *host_table);
    struct contents *contents = malloc(halves * sizeof *contents);
    size_t *chosen = malloc(halves * sizeof *chosen), table_bytes = halves * sizeof(CUdeviceptr);
    CUstream stream;
    CHECK(half && host_table && contents && chosen, "no memory");
    OK(cuStreamCreate(&stream, STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&block, part * bytes));
    OK(cuMemAlloc_v2(&tables, 3 * table_bytes));
    for (size_t b = 0; b < buffers; b++) {
        if (b < single) OK(cuMemAlloc_v2(&half[2 * b], bytes));
        else half[2 * b] = block + (b - single) * bytes;
        half[2 * b + 1] = half[2 * b] + words * 4;
    }
    for (size_t h = 0; h < halves; h++) {
        contents[h] = filled((uint32_t)(1000 * h));
        run_fill_on(stream, half[h], words, contents[h].seed);
    }
    for (uint32_t round = 0; round < rounds; round++) {
        size_t count = 1 + next_random(&random_state) % halves;
        CUdeviceptr table = tables;
        choose(chosen, count, halves);
        for (size_t i = 0; i < count; i++) host_table[i] = half[chosen[i]];
        switch (next_random(&random_state) % 4) {
        case 0:
            /* A new array from the host in the place of the last one. */
            OK(cuMemcpyHtoDAsync_v2(table, host_table, count * 8, stream));
            break;
        case 1:
            /* The array that the kernel reads is a copy that the device made. */
            OK(cuMemcpyHtoDAsync_v2(tables + table_bytes, host_table, count * 8, stream));
            OK(cuMemcpyDtoDAsync_v2(table, tables + table_bytes, count * 8, stream));
            break;
        case 2:
            /* A kernel makes the array: of every second half in the block, which begins at the first half. */
            count = part;
            table = tables + 2 * table_bytes;
            run_store_pointers_on(stream, table, block + words * 4, bytes, count);
            for (size_t i = 0; i < count; i++) chosen[i] = 2 * (single + i) + 1;
            break;
        default:
            /* A kernel puts one pointer after the other where an old array was. */
            for (size_t i = 0; i < count; i++) run_store_pointers_on(stream, table + 8 * i, host_table[i], 0, 1);
            break;
        }
        run_batched_mix_on(stream, table, count, words, round);
        for (size_t i = 0; i < count; i++) contents[chosen[i]] = mixed(contents[chosen[i]], round);
        /* The source of a copy is the program's again only now. */
        OK(cuStreamSynchronize(stream));
    }
    for (size_t h = 0; h < halves; h++) check_contents(half[h], words, contents[h], h);
    for (size_t b = 0; b < single; b++) OK(cuMemFree_v2(half[2 * b]));
    OK(cuMemFree_v2(block));
    OK(cuMemFree_v2(tables));
    OK(cuStreamDestroy_v2(stream));
    check_free_is(before);
    printf("pointer_array: ok, %zu x %zu MiB, %zu rounds\n", buffers, bytes / MIB, rounds);
    return 0;
}
