/* Arrays of pointers in host memory that kernels read: the program changes them with plain stores, without any call
 * of the driver, while earlier launches still run; and a host function changes them in the stream's order, long
 * after the launch that reads them was made. Or it never does that: then it waits for the stream first.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [rounds, default 12] [seed] [host functions, default 1] */
#include "program.h"

#include <unistd.h>

enum { WIDTH = 3 };

struct change {
    volatile uint64_t *entry;
    uint64_t value[WIDTH];
};

static void apply(void *argument) {
    struct change *change = argument;
    for (int i = 0; i < WIDTH; i++) change->entry[i] = change->value[i];
}

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 12), bytes = argument(argc, argv, 2, 32) * MIB;
    size_t rounds = argument(argc, argv, 3, 12), page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t random = seed_argument(argc, argv, 4), words = bytes / 4;
    size_t functions = argument(argc, argv, 5, 1);
    CHECK(buffers >= WIDTH && words > 0, "nothing to do");
    start_gpu();
    size_t before = settled_free_bytes(), table_bytes = (rounds * WIDTH * 8 + page) / page * page;
    CUdeviceptr *buffer = malloc(buffers * sizeof *buffer), device_table[2];
    struct contents *contents = malloc(buffers * sizeof *contents);
    struct change *changes = calloc(rounds, sizeof *changes);
    void *table[2];
    CUstream stream;
    CHECK(buffer && contents && changes, "no memory");
    OK(cuStreamCreate(&stream, STREAM_NON_BLOCKING));
    /* One table is memory that the driver gave, the other is the program's own. */
    OK(cuMemHostAlloc(&table[0], table_bytes, HOST_DEVICEMAP));
    CHECK(!posix_memalign(&table[1], page, table_bytes), "no memory");
    OK(cuMemHostRegister_v2(table[1], table_bytes, HOST_DEVICEMAP));
    for (int t = 0; t < 2; t++) {
        memset(table[t], 0, table_bytes);
        OK(cuMemHostGetDevicePointer_v2(&device_table[t], table[t], 0));
    }
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        contents[b] = filled((uint32_t)b);
        run_fill_on(stream, buffer[b], words, (uint32_t)b);
    }
    for (uint32_t round = 0; round < rounds; round++) {
        size_t first = next_random(&random) % buffers;
        unsigned how = next_random(&random) % 4;
        size_t t = how % 2, at = how < 2 ? round * WIDTH : 0;
        volatile uint64_t *entry = (volatile uint64_t *)table[t] + at;
        struct change *change = &changes[round];
        change->entry = entry;
        for (size_t i = 0; i < WIDTH; i++) change->value[i] = buffer[(first + i) % buffers];
        if (how < 2) {
            /* Entries that nobody has read yet: no need to wait for anything. */
            apply(change);
        } else if (!functions) {
            OK(cuStreamSynchronize(stream));
            apply(change);
        } else {
            /* The same few entries again and again, changed when their turn has come. */
            OK(cuLaunchHostFunc(stream, apply, change));
        }
        run_batched_mix_on(stream, device_table[t] + 8 * at, WIDTH, words, round);
        for (size_t i = 0; i < WIDTH; i++) {
            size_t b = (first + i) % buffers;
            contents[b] = mixed(contents[b], round);
        }
    }
    for (size_t b = 0; b < buffers; b++) check_contents(buffer[b], words, contents[b], b);
    for (size_t b = 0; b < buffers; b++) OK(cuMemFree_v2(buffer[b]));
    OK(cuMemHostUnregister(table[1]));
    OK(cuMemFreeHost(table[0]));
    free(table[1]);
    OK(cuStreamDestroy_v2(stream));
    check_free_is(before);
    printf("mapped_pointers: ok, %zu x %zu MiB, %zu rounds\n", buffers, bytes / MIB, rounds);
    return 0;
}
