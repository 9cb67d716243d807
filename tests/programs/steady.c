/* A loop that sweeps buffers one after the other, as layers of a network are: the work for which data moves ahead
 * of need. Each round changes every buffer from its neighbour; the contents at the end are checked in full.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [rounds, default 12] [streams, default 1] */
#include "program.h"

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 12), bytes = argument(argc, argv, 2, 32) * MIB;
    size_t rounds = argument(argc, argv, 3, 12), streams = argument(argc, argv, 4, 1);
    CHECK(buffers > 1 && bytes > 0 && streams > 0, "nothing to do");
    start_gpu();
    size_t before = settled_free_bytes();
    CUdeviceptr *buffer = malloc(buffers * sizeof *buffer);
    CUstream *stream = malloc(streams * sizeof *stream);
    uint32_t *expected = malloc(buffers * sizeof *expected), *words = malloc(bytes);
    CHECK(buffer && stream && expected && words, "no memory");
    uint64_t count = bytes / 4;
    for (size_t s = 0; s < streams; s++) OK(cuStreamCreate(&stream[s], 1));
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        run_fill_on(stream[b % streams], buffer[b], count, (uint32_t)b);
    }
    double start = now_us();
    for (uint32_t round = 0; round < rounds; round++)
        for (size_t b = 0; b < buffers; b++) {
            void *parameters[] = {&buffer[b], &count, &round};
            launch(gpu.mix, count, stream[b % streams], parameters);
        }
    OK(cuCtxSynchronize());
    double micros = now_us() - start;
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemcpyDtoH_v2(words, buffer[b], bytes));
        for (uint64_t i = 0; i < count; i++) {
            uint32_t x = mix_word((uint32_t)i + (uint32_t)b);
            for (uint32_t round = 0; round < rounds; round++) x = x * 1664525u + 1013904223u + round;
            CHECK(words[i] == x, "buffer %zu, word %" PRIu64, b, i);
        }
        OK(cuMemFree_v2(buffer[b]));
    }
    for (size_t s = 0; s < streams; s++) OK(cuStreamDestroy_v2(stream[s]));
    check_free_is(before);
    printf("steady: ok, %zu x %zu MiB, %zu rounds, %.0f us a round\n", buffers, bytes / MIB, rounds, micros / (double)rounds);
    return 0;
}
