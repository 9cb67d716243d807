/* Stream-ordered allocation: what is freed on one stream is never given to another before its work is done,
 * pools give back what they are told to, and pointers of either kind may be freed either way.
 * Arguments: [MiB held at once, default 320] [seed] [exchanges between streams, default 200] */
#include "program.h"

enum { STREAMS = 3, SLOTS = 24 };

static CUmemoryPool pool;
static CUstream streams[STREAMS];

static uint64_t attribute(int which) {
    uint64_t value = 0;
    OK(cuMemPoolGetAttribute(pool, which, &value));
    return value;
}

static void synchronize_all(void) {
    for (int s = 0; s < STREAMS; s++) OK(cuStreamSynchronize(streams[s]));
}

/* More than fits in VRAM under emuV, all of it in use at once. */
static void hold(size_t bytes) {
    enum { BLOCKS = 5 };
    CUdeviceptr block[BLOCKS], sums;
    uint64_t count = bytes / BLOCKS / 4, got[BLOCKS] = {0};
    OK(cuMemAllocAsync(&sums, sizeof got, streams[0]));
    OK(cuMemcpyHtoDAsync_v2(sums, got, sizeof got, streams[0]));
    for (int b = 0; b < BLOCKS; b++) OK(cuMemAllocAsync(&block[b], count * 4, streams[0]));
    CHECK(attribute(POOL_USED_NOW) >= BLOCKS * count * 4, "used is %" PRIu64, attribute(POOL_USED_NOW));
    for (int b = 0; b < BLOCKS; b++) run_fill_on(streams[0], block[b], count, (uint32_t)b + 5);
    for (int b = 0; b < BLOCKS; b++) run_reduce_on(streams[0], sums + 8 * (unsigned)b, block[b], count);
    OK(cuMemcpyDtoHAsync_v2(got, sums, sizeof got, streams[0]));
    for (int b = 0; b < BLOCKS; b++) OK(cuMemFreeAsync(block[b], streams[0]));
    OK(cuMemFreeAsync(sums, streams[0]));
    OK(cuStreamSynchronize(streams[0]));
    for (int b = 0; b < BLOCKS; b++) CHECK(got[b] == reduce_filled((uint32_t)b + 5, count), "block %d is wrong", b);
}

static void check_pointer(void) {
    CUdeviceptr block, base, start;
    size_t bytes = 3 * MIB + 700, size, range;
    unsigned type;
    OK(cuMemAllocAsync(&block, bytes, streams[0]));
    OK(cuMemGetAddressRange_v2(&base, &size, block + MIB));
    CHECK(base == block && size >= bytes, "range %llx + %zu", base, size);
    OK(cuPointerGetAttribute(&type, POINTER_MEMORY_TYPE, block + 5));
    CHECK(type == MEMORY_DEVICE, "memory type %u", type);
    OK(cuPointerGetAttribute(&start, POINTER_RANGE_START, block + 5));
    OK(cuPointerGetAttribute(&range, POINTER_RANGE_SIZE, block + 5));
    CHECK(start == block && range >= bytes, "range %llx + %zu", start, range);
    /* Either kind of pointer may be freed either way, once. */
    OK(cuMemFree_v2(block));
    FAILS(cuMemFree_v2(block));
    OK(cuMemAlloc_v2(&block, bytes));
    OK(cuMemFreeAsync(block, streams[1]));
    synchronize_all();
    FAILS(cuMemFree_v2(block));
    OK(cuMemAllocAsync(&block, 100, streams[0]));
    OK(cuMemFreeAsync(block, streams[0]));
    FAILS(cuMemFreeAsync(block, streams[0]));
}

/* Memory that is freed behind work, part of it behind a fence that is there already, is all to be had for the one who
 * needs it: what a driver does itself then is its own affair. */
static void late_frees(void) {
    const char *expected = getenv("EMUV_TEST_EXPECT");
    if (!expected || strcmp(expected, "emuv")) return;
    synchronize_all();
    OK(cuMemPoolTrimTo(pool, 0));
    size_t free_now = free_bytes(), part = free_now / 10 * 3 / MIB * MIB;
    CUdeviceptr first, second, filler, small, large;
    uint64_t count = part / 4;
    OK(cuMemAllocAsync(&first, part, streams[0]));
    OK(cuMemAllocAsync(&second, part, streams[0]));
    OK(cuMemAllocAsync(&filler, part, streams[0]));
    run_fill_on(streams[0], first, count, 1);
    OK(cuMemFreeAsync(first, streams[0]));
    /* Looks whether it can have that. */
    OK(cuMemAllocAsync(&small, 3 * MIB, streams[1]));
    run_fill_on(streams[0], second, count, 2);
    run_fill_on(streams[0], second, count, 3);
    OK(cuMemFreeAsync(second, streams[0]));
    OK(cuMemAllocAsync(&large, 3 * part / 2, streams[1]));
    run_fill_on(streams[1], large, 3 * count / 2, 4);
    OK(cuMemFreeAsync(filler, streams[0]));
    OK(cuMemFreeAsync(small, streams[1]));
    OK(cuStreamSynchronize(streams[1]));
    CHECK(run_reduce(large, 3 * count / 2) == reduce_filled(4, 3 * count / 2), "the sum is wrong");
    OK(cuMemFreeAsync(large, streams[1]));
    synchronize_all();
}

/* A thread without a current context may free on a stream that it names. */
static void free_without_context(void) {
    CUdeviceptr small, large, other;
    CUcontext own;
    OK(cuMemAlloc_v2(&other, 3 * MIB));
    OK(cuMemAllocAsync(&small, 5000, streams[0]));
    OK(cuMemAllocAsync(&large, 3 * MIB, streams[0]));
    OK(cuCtxGetCurrent(&own));
    OK(cuCtxSetCurrent(NULL));
    OK(cuMemFreeAsync(small, streams[0]));
    OK(cuMemFreeAsync(large, streams[0]));
    OK(cuMemFreeAsync(other, streams[0]));
    OK(cuCtxSetCurrent(own));
    synchronize_all();
}

/* Blocks come and go on several streams without any synchronisation; each is filled and summed on its own
 * stream. Were memory given out too early, a fill of one stream would spoil a sum of another. */
static void exchange(uint64_t *random, size_t bytes, int rounds) {
    struct { CUdeviceptr block; uint64_t count; uint32_t seed; int stream; } slot[SLOTS] = {0};
    uint64_t *expected = calloc((size_t)rounds, 8), *got = calloc((size_t)rounds, 8);
    CUdeviceptr sums;
    CHECK(expected && got, "no memory");
    OK(cuMemAlloc_v2(&sums, (size_t)rounds * 8));
    OK(cuMemcpyHtoD_v2(sums, got, (size_t)rounds * 8));
    for (int round = 0; round < rounds; round++) {
        int s = (int)(next_random(random) % SLOTS);
        if (slot[s].block) OK(cuMemFreeAsync(slot[s].block, streams[slot[s].stream]));
        slot[s].stream = (int)(next_random(random) % STREAMS);
        uint64_t most = next_random(random) % 3 ? bytes / SLOTS : 100000;
        slot[s].count = 1 + next_random(random) % (most / 4);
        slot[s].seed = (uint32_t)next_random(random);
        CUstream stream = streams[slot[s].stream];
        OK(cuMemAllocAsync(&slot[s].block, slot[s].count * 4, stream));
        run_fill_on(stream, slot[s].block, slot[s].count, slot[s].seed);
        run_reduce_on(stream, sums + 8 * (unsigned)round, slot[s].block, slot[s].count);
        expected[round] = reduce_filled(slot[s].seed, slot[s].count);
    }
    for (int s = 0; s < SLOTS; s++)
        if (slot[s].block) OK(cuMemFreeAsync(slot[s].block, streams[slot[s].stream]));
    synchronize_all();
    OK(cuMemcpyDtoH_v2(got, sums, (size_t)rounds * 8));
    OK(cuMemFree_v2(sums));
    for (int round = 0; round < rounds; round++)
        CHECK(got[round] == expected[round], "round %d: sum %" PRIu64 ", not %" PRIu64, round, got[round], expected[round]);
    free(expected);
    free(got);
}

int main(int argc, char **argv) {
    size_t bytes = argument(argc, argv, 1, 320) * MIB;
    uint64_t seed = seed_argument(argc, argv, 2), random = seed;
    int rounds = (int)argument(argc, argv, 3, 200);
    start_gpu();
    OK(cuDeviceGetDefaultMemPool(&pool, gpu.device));
    for (int s = 0; s < STREAMS; s++) OK(cuStreamCreate(&streams[s], 1));
    size_t before = settled_free_bytes();

    hold(bytes);
    check_pointer();
    free_without_context();
    /* The real driver goes on counting what cuMemFree has taken out of a pool. */
    synchronize_all();
    uint64_t still_counted = attribute(POOL_USED_NOW), everything = UINT64_MAX;
    OK(cuMemPoolSetAttribute(pool, POOL_RELEASE_THRESHOLD, &everything));
    hold(bytes);
    exchange(&random, bytes, rounds);
    CHECK(attribute(POOL_USED_NOW) == still_counted, "used is %" PRIu64, attribute(POOL_USED_NOW));
    CHECK(attribute(POOL_USED_HIGH) >= bytes * 9 / 10, "the most used was %" PRIu64, attribute(POOL_USED_HIGH));
    /* A stream that is gone leaves nothing behind that could not be had. */
    OK(cuStreamDestroy_v2(streams[STREAMS - 1]));
    OK(cuCtxSynchronize());
    OK(cuStreamCreate(&streams[STREAMS - 1], 1));
    hold(bytes);
    late_frees();

    synchronize_all();
    OK(cuMemPoolTrimTo(pool, 0));
    CHECK(attribute(POOL_RESERVED_NOW) == 0, "%" PRIu64 " bytes are held after the trim", attribute(POOL_RESERVED_NOW));
    check_free_is(before);
    printf("pools: ok, %d exchanges, %zu MiB at once\n", rounds, bytes / MIB);
    return 0;
}
