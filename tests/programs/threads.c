/* Eight threads allocate, launch, copy, check and free at the same time; then nothing is left over.
 * Arguments: [MiB that all threads together may hold, default 320] [seed] [rounds per thread, default 12]
 *            [MiB of ballast taken first, default 0] */
#include "program.h"

#include <pthread.h>

enum { THREADS = 8, HELD = 4 };

static size_t block_limit;
static size_t rounds;

struct worker {
    pthread_t thread;
    uint64_t random;
    unsigned index;
};

static void *work(void *argument_) {
    struct worker *self = argument_;
    OK(cuCtxSetCurrent(gpu.context));
    CUstream stream;
    OK(cuStreamCreate(&stream, 1));
    struct { CUdeviceptr at; uint64_t count; uint32_t seed; } held[HELD] = {{0, 0, 0}};
    uint32_t *words = malloc(block_limit);
    for (size_t round = 0; round < rounds; round++) {
        unsigned slot = (unsigned)(next_random(&self->random) % HELD);
        if (held[slot].at) {
            OK(cuMemcpyDtoHAsync_v2(words, held[slot].at, held[slot].count * 4, stream));
            OK(cuStreamSynchronize(stream));
            /* Ends and a stride through the middle: all of it would be the CPU's time, not the GPU's. */
            for (uint64_t i = 0; i < held[slot].count; i += i < 64 || i + 65 > held[slot].count ? 1 : 61)
                CHECK(words[i] == mix_word((uint32_t)i + held[slot].seed), "thread %u word %" PRIu64, self->index, i);
            OK(cuMemFree_v2(held[slot].at));
        }
        /* From one word to the limit, small ones as often as large ones. */
        uint64_t largest = next_random(&self->random) % 2 ? block_limit : 64 << 10;
        uint64_t count = 1 + next_random(&self->random) % (largest / 4);
        held[slot].count = count;
        held[slot].seed = (uint32_t)next_random(&self->random);
        OK(cuMemAlloc_v2(&held[slot].at, count * 4));
        run_fill_on(stream, held[slot].at, count, held[slot].seed);
    }
    OK(cuStreamSynchronize(stream));
    for (unsigned slot = 0; slot < HELD; slot++)
        if (held[slot].at) OK(cuMemFree_v2(held[slot].at));
    OK(cuStreamDestroy_v2(stream));
    free(words);
    return NULL;
}

int main(int argc, char **argv) {
    size_t together = argument(argc, argv, 1, 320) * MIB;
    uint64_t seed = seed_argument(argc, argv, 2);
    rounds = argument(argc, argv, 3, 12);
    block_limit = together / (THREADS * HELD);
    start_gpu();
    size_t before = settled_free_bytes();
    size_t ballast_bytes = argument(argc, argv, 4, 0) * MIB;
    CUdeviceptr ballast = 0;
    if (ballast_bytes) OK(cuMemAlloc_v2(&ballast, ballast_bytes));
    struct worker workers[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].index = i;
        workers[i].random = seed + i;
        CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0, "pthread_create failed");
    }
    for (unsigned i = 0; i < THREADS; i++) pthread_join(workers[i].thread, NULL);
    OK(cuCtxSynchronize());
    OK(cuMemFree_v2(ballast));
    check_free_is(before);
    printf("threads: ok\n");
    return 0;
}
