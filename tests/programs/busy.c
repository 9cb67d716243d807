/* Gives the GPU work all the time, and counts what is done where others can see it: for tests of turns that depend on no
 * timing. Each buffer is changed from what it was; at the end all are checked in full.
 * Arguments: [file of accounts] [number of this account] [buffers, default 2] [MiB of each, default 1]
 *            [rounds between waits, default 4; 0: it waits only when the driver makes it] [seconds until the end, 0: none]
 * An account is four words: process, rounds given, rounds known to be done, and whether it is to end. */
#include "program.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WORDS = 4 };

int main(int argc, char **argv) {
    size_t number = argument(argc, argv, 2, 0), buffers = argument(argc, argv, 3, 2);
    size_t bytes = argument(argc, argv, 4, 1) * MIB, between = argument(argc, argv, 5, 4);
    double seconds = (double)argument(argc, argv, 6, 0);
    uint64_t own[WORDS] = {0}, *account = own;
    if (argc > 1 && *argv[1]) {
        int file = open(argv[1], O_RDWR);
        CHECK(file >= 0, "cannot open %s", argv[1]);
        uint64_t *all = mmap(NULL, (number + 1) * sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        CHECK(all != MAP_FAILED, "cannot map %s", argv[1]);
        account = all + number * WORDS;
    }
    start_gpu();
    __atomic_store_n(&account[0], (uint64_t)getpid(), __ATOMIC_SEQ_CST);
    CUdeviceptr *buffer = malloc(buffers * sizeof *buffer);
    uint32_t *words = malloc(bytes);
    CHECK(buffer && words && buffers, "no memory");
    uint64_t count = bytes / 4;
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        run_fill(buffer[b], count, (uint32_t)b);
    }
    double start = now_us();
    uint32_t round = 0;
    while (!__atomic_load_n(&account[3], __ATOMIC_SEQ_CST) && (seconds == 0 || now_us() - start < seconds * 1e6)) {
        for (size_t b = 0; b < buffers; b++) run_mix(buffer[b], count, round);
        round++;
        __atomic_store_n(&account[1], round, __ATOMIC_SEQ_CST);
        if (between && round % between == 0) {
            OK(cuCtxSynchronize());
            __atomic_store_n(&account[2], round, __ATOMIC_SEQ_CST);
        }
    }
    OK(cuCtxSynchronize());
    double micros = now_us() - start;
    /* All rounds together change a word to factor * word + term. */
    uint32_t factor = 1, term = 0;
    for (uint32_t r = 0; r < round; r++) {
        factor *= 1664525u;
        term = term * 1664525u + 1013904223u + r;
    }
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemcpyDtoH_v2(words, buffer[b], bytes));
        for (uint64_t i = 0; i < count; i++) {
            uint32_t x = factor * mix_word((uint32_t)i + (uint32_t)b) + term;
            CHECK(words[i] == x, "buffer %zu, word %" PRIu64, b, i);
        }
    }
    printf("busy: ok, %u rounds in %.3f s\n", round, micros / 1e6);
    return 0;
}
