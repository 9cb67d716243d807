/* Takes and gives back memory at random until it is killed, or for a number of steps, and keeps a public account of it:
 * what it holds is counted after it was got, and no more before it is given back. So the sum over all programs at one
 * moment is never more than what they hold.
 * Arguments: [file of accounts] [number of this account] [seed] [MiB of the largest block] [steps, 0: no end]
 *            [microseconds between steps]
 * An account is eight words: version (odd while it changes), bytes, process, steps done, and whether it is at rest, as all
 * of them are while the sixth word of the file is not 0. */
#include "program.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_BLOCKS = 64, WORDS = 8 };

static struct { CUdeviceptr at; size_t bytes; char in_order; } blocks[MOST_BLOCKS];

int main(int argc, char **argv) {
    size_t number = argument(argc, argv, 2, 0);
    uint64_t random = seed_argument(argc, argv, 3);
    size_t largest = argument(argc, argv, 4, 8) * MIB;
    size_t steps = argument(argc, argv, 5, 1000);
    /* Whoever watches so many is to come first. */
    if (argument(argc, argv, 6, 0)) (void)!nice(5);
    useconds_t pause = (useconds_t)argument(argc, argv, 6, 0);
    uint64_t own[WORDS] = {0}, *account = own, *stop = &own[5];
    if (argc > 1 && *argv[1]) {
        int file = open(argv[1], O_RDWR);
        CHECK(file >= 0, "cannot open %s", argv[1]);
        size_t bytes = (number + 1) * sizeof own;
        uint64_t *all = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        CHECK(all != MAP_FAILED, "cannot map %s", argv[1]);
        account = all + number * WORDS;
        stop = all + 5;
    }
    __atomic_store_n(&account[2], (uint64_t)getpid(), __ATOMIC_SEQ_CST);
    start_gpu();
    for (size_t step = 0; steps == 0 || step < steps; step++) {
        __atomic_fetch_add(&account[3], 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(stop, __ATOMIC_SEQ_CST)) {
            __atomic_store_n(&account[4], 1, __ATOMIC_SEQ_CST);
            usleep(20000);
        }
        __atomic_store_n(&account[4], 0, __ATOMIC_SEQ_CST);
        if (pause) usleep(pause);
        unsigned index = (unsigned)(next_random(&random) % MOST_BLOCKS);
        if (blocks[index].bytes) {
            __atomic_fetch_add(&account[0], 1, __ATOMIC_SEQ_CST);
            __atomic_fetch_sub(&account[1], blocks[index].bytes, __ATOMIC_SEQ_CST);
            __atomic_fetch_add(&account[0], 1, __ATOMIC_SEQ_CST);
            if (blocks[index].in_order) OK(cuMemFreeAsync(blocks[index].at, NULL));
            else OK(cuMemFree_v2(blocks[index].at));
            blocks[index].bytes = 0;
            continue;
        }
        size_t bytes = 1 + next_random(&random) % largest;
        if (next_random(&random) % 4 == 0) bytes = 1 + bytes % 100000;
        char in_order = next_random(&random) % 3 == 0;
        CUresult result = in_order ? cuMemAllocAsync(&blocks[index].at, bytes, NULL) : cuMemAlloc_v2(&blocks[index].at, bytes);
        if (result == CUDA_ERROR_OUT_OF_MEMORY) continue;
        CHECK(result == CUDA_SUCCESS, "%zu bytes: %d", bytes, result);
        blocks[index].bytes = bytes;
        blocks[index].in_order = in_order;
        __atomic_fetch_add(&account[0], 1, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(&account[1], bytes, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(&account[0], 1, __ATOMIC_SEQ_CST);
        if (next_random(&random) % 4 == 0) run_fill(blocks[index].at, bytes / 4, 1);
    }
    printf("churn: ok\n");
    return 0;
}
