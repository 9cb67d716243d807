/* Memory that is freed and had again in a stream's order, over and over, beside memory that stays: what comes back
 * under an old address is another buffer, of another size, while an array of pointers still names the old ones.
 * Arguments: [MiB that stays, default 192] [MiB that comes and goes, default 192] [rounds, default 60] [seed] */
#include "program.h"

enum { STREAMS = 2, SLOTS = 8, STAYING = 4 };

struct slot {
    CUdeviceptr at;
    uint64_t words;
    struct contents contents;
    int ordered; /* from cuMemAllocAsync */
};

int main(int argc, char **argv) {
    size_t staying_bytes = argument(argc, argv, 1, 192) * MIB / STAYING, bytes = argument(argc, argv, 2, 192) * MIB;
    size_t rounds = argument(argc, argv, 3, 60);
    uint64_t random = seed_argument(argc, argv, 4), staying_words = staying_bytes / 4;
    CHECK(staying_words > 0 && bytes / SLOTS >= 8 * STREAMS && rounds > 0, "nothing to do");
    start_gpu();
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, gpu.device));
    size_t before = settled_free_bytes();
    CUstream stream[STREAMS];
    struct slot slot[STREAMS][SLOTS] = {0};
    struct contents contents[STAYING];
    CUdeviceptr staying[STAYING], tables, sums;
    uint64_t *expected = calloc(rounds, 8), *got = calloc(rounds, 8);
    CHECK(expected && got, "no memory");
    for (int s = 0; s < STREAMS; s++) OK(cuStreamCreate(&stream[s], STREAM_NON_BLOCKING));
    for (int b = 0; b < STAYING; b++) {
        OK(cuMemAlloc_v2(&staying[b], staying_bytes));
        contents[b] = filled((uint32_t)(100 + b));
        run_fill_on(stream[b % STREAMS], staying[b], staying_words, contents[b].seed);
    }
    OK(cuMemAlloc_v2(&tables, STREAMS * SLOTS * 8));
    OK(cuMemAlloc_v2(&sums, rounds * 8));
    OK(cuMemcpyHtoD_v2(sums, got, rounds * 8));
    OK(cuMemsetD8_v2(tables, 0, STREAMS * SLOTS * 8));
    OK(cuCtxSynchronize());
    for (uint32_t round = 0; round < rounds; round++) {
        int s = (int)(next_random(&random) % STREAMS), which = (int)(next_random(&random) % SLOTS);
        struct slot *at = &slot[s][which];
        CUdeviceptr entry = tables + 8 * (unsigned)(s * SLOTS + which);
        if (at->at) {
            /* Changed for the last time through the array, summed, and gone: all in the stream's order. */
            run_batched_mix_on(stream[s], entry, 1, at->words, round);
            run_reduce_on(stream[s], sums + 8 * round, at->at, at->words);
            at->contents = mixed(at->contents, round);
            expected[round] = reduce_contents(at->contents, at->words);
            /* What was had in order may be freed either way, but cuMemFree waits for the work on other memory only. */
            if (at->ordered && next_random(&random) % 4) {
                OK(cuMemFreeAsync(at->at, stream[s]));
            } else {
                if (at->ordered) OK(cuStreamSynchronize(stream[s]));
                OK(cuMemFree_v2(at->at));
            }
        }
        size_t most = bytes / STREAMS / SLOTS;
        size_t size = next_random(&random) % 4 ? most - next_random(&random) % (most / 2) : 4 + next_random(&random) % 5000;
        if (size > most) size = most;
        at->words = size / 4;
        at->ordered = next_random(&random) % 4 != 0;
        if (at->ordered) OK(cuMemAllocAsync(&at->at, size, stream[s]));
        else OK(cuMemAlloc_v2(&at->at, size));
        at->contents = filled((uint32_t)next_random(&random));
        run_fill_on(stream[s], at->at, at->words, at->contents.seed);
        run_store_pointers_on(stream[s], entry, at->at, 0, 1);
        int b = s + STREAMS * (int)(next_random(&random) % (STAYING / STREAMS));
        run_mix_on(stream[s], staying[b], staying_words, round);
        contents[b] = mixed(contents[b], round);
    }
    for (int s = 0; s < STREAMS; s++)
        for (size_t w = 0; w < SLOTS; w++)
            if (slot[s][w].at) {
                check_contents(slot[s][w].at, slot[s][w].words, slot[s][w].contents, (size_t)s * SLOTS + w);
                OK(cuMemFreeAsync(slot[s][w].at, stream[s]));
            }
    for (int s = 0; s < STREAMS; s++) OK(cuStreamSynchronize(stream[s]));
    OK(cuMemcpyDtoH_v2(got, sums, rounds * 8));
    for (size_t round = 0; round < rounds; round++)
        CHECK(got[round] == expected[round], "round %zu: sum %" PRIu64 ", not %" PRIu64, round, got[round], expected[round]);
    for (size_t b = 0; b < STAYING; b++) {
        check_contents(staying[b], staying_words, contents[b], 1000 + b);
        OK(cuMemFree_v2(staying[b]));
    }
    OK(cuMemFree_v2(tables));
    OK(cuMemFree_v2(sums));
    for (int s = 0; s < STREAMS; s++) OK(cuStreamDestroy_v2(stream[s]));
    OK(cuMemPoolTrimTo(pool, 0));
    check_free_is(before);
    printf("reuse: ok, %zu MiB stay, %zu MiB come and go, %zu rounds\n", STAYING * staying_bytes / MIB, bytes / MIB, rounds);
    return 0;
}
