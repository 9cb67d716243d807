/* Hints of every kind on random parts of random buffers, beside the work that uses them and from a second thread: what was
 * not discarded stays as it was. Wrong calls give an error code. Without emuV it is the same program without hints.
 * Arguments: [buffers, default 16] [MiB of each, default 24] [seed] [steps, default 300] */
#include "program.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../include/emuv.h"

enum { MOST = 64, PIECES = 256, STREAMS = 2 };

struct buffer {
    CUdeviceptr at;
    size_t bytes;
    uint32_t seed, rounds;
    int ordered;            /* from a pool */
    CUstream stream;
    char lost[PIECES];      /* by MiB: what it holds is not defined */
};

static struct buffer buffers[MOST];
static size_t count, discarded;
static CUstream streams[STREAMS];
static uint64_t random_state;
static volatile int over;

static uint64_t pick(uint64_t below) {
    return next_random(&random_state) % below;
}

static void fill(struct buffer *b) {
    b->seed = (uint32_t)next_random(&random_state);
    b->rounds = 0;
    run_fill_on(b->stream, b->at, b->bytes / 4, b->seed);
    memset(b->lost, 0, sizeof b->lost);
}

static void make(struct buffer *b, size_t bytes) {
    b->bytes = bytes;
    b->ordered = (int)pick(2);
    b->stream = streams[pick(STREAMS)];
    if (b->ordered) OK(cuMemAllocAsync(&b->at, bytes, b->stream));
    else OK(cuMemAlloc_v2(&b->at, bytes));
    fill(b);
}

static void release(struct buffer *b) {
    if (b->ordered) OK(cuMemFreeAsync(b->at, b->stream));
    else OK(cuMemFree_v2(b->at));
    if (emuv_hint && !b->ordered) {
        int code = emuv_hint(b->at, 1, EMUV_HINT_DISCARD);
        CHECK(code == EMUV_ERROR_NOT_PLACED, "a hint about freed memory gave %d", code);
    }
}

static void mix(struct buffer *b) {
    uint64_t words = b->bytes / 4;
    void *parameters[] = {&b->at, &words, &b->rounds};
    launch(gpu.mix, words, b->stream, parameters);
    b->rounds++;
}

static void verify(const struct buffer *b) {
    uint32_t words[1024];
    uint64_t piece = pick(b->bytes / MIB), first = piece * (MIB / 4) + pick(MIB / 4 - 1024);
    if (b->lost[piece]) return;
    OK(cuMemcpyDtoHAsync_v2(words, b->at + first * 4, sizeof words, b->stream));
    OK(cuStreamSynchronize(b->stream));
    for (uint64_t i = 0; i < 1024; i++) {
        uint32_t x = mix_word((uint32_t)(first + i) + b->seed);
        for (uint32_t round = 0; round < b->rounds; round++) x = x * 1664525u + 1013904223u + round;
        CHECK(words[i] == x, "buffer at %llx, word %" PRIu64, b->at, first + i);
    }
}

static void hint(struct buffer *b) {
    if (!emuv_hint) return;
    int what = (int)pick(5);
    uint64_t offset = pick(2) ? 0 : pick(b->bytes), bytes = pick(2) ? b->bytes - offset : 1 + pick(b->bytes - offset);
    if (what > EMUV_HINT_DISCARD) what = EMUV_HINT_DISCARD;
    int code = emuv_hint(b->at + offset, bytes, what);
    CHECK(code == EMUV_OK, "a hint gave %d", code);
    if (what != EMUV_HINT_DISCARD) return;
    discarded++;
    /* At most the whole pieces that the range names. */
    for (uint64_t piece = (offset + MIB - 1) / MIB; piece < (offset + bytes) / MIB; piece++) b->lost[piece] = 1;
}

static void *hint_beside(void *unused) {
    uint64_t state = 7;
    struct emuv_stats stats;
    (void)unused;
    while (!over) {
        /* Whatever lies there by now. */
        const struct buffer *b = &buffers[next_random(&state) % count];
        emuv_hint(b->at + next_random(&state) % b->bytes, 1, (int)(next_random(&state) % 3));
        if (emuv_stats(&stats, sizeof stats) == EMUV_OK) CHECK(stats.vram_used <= stats.vram_budget, "over the budget");
        usleep(200);
    }
    return NULL;
}

static void check_wrong_calls(const struct buffer *b) {
    struct emuv_stats stats;
    CHECK(emuv_abi_version() == EMUV_ABI_VERSION, "version %u", emuv_abi_version());
    CHECK(emuv_hint(b->at, b->bytes, EMUV_HINT_DISCARD + 1) == EMUV_ERROR_INVALID_VALUE, "no such hint");
    CHECK(emuv_hint(b->at, 0, EMUV_HINT_COLD) == EMUV_ERROR_INVALID_VALUE, "no bytes");
    CHECK(emuv_hint(b->at, b->bytes + 1, EMUV_HINT_DISCARD) == EMUV_ERROR_INVALID_VALUE, "beyond the end");
    CHECK(emuv_hint(b->at + 1, b->bytes, EMUV_HINT_DISCARD) == EMUV_ERROR_INVALID_VALUE, "beyond the end");
    CHECK(emuv_hint(b->at, UINT64_MAX, EMUV_HINT_DISCARD) == EMUV_ERROR_INVALID_VALUE, "beyond the end");
    CHECK(emuv_hint((uint64_t)&stats, 1, EMUV_HINT_COLD) == EMUV_ERROR_NOT_PLACED, "host memory");
    CHECK(emuv_hint(0, 1, EMUV_HINT_DISCARD) == EMUV_ERROR_NOT_PLACED, "null");
    CHECK(emuv_hint(UINT64_MAX, UINT64_MAX, EMUV_HINT_DISCARD) == EMUV_ERROR_NOT_PLACED, "no address");
    CHECK(emuv_stats(NULL, sizeof stats) == EMUV_ERROR_INVALID_VALUE, "null");
    CHECK(emuv_stats(&stats, 7) == EMUV_ERROR_INVALID_VALUE, "no room for a field");
    CHECK(emuv_device_stats(5, &stats, sizeof stats) == EMUV_ERROR_INVALID_VALUE, "no such device");
    CHECK(emuv_mark(NULL) == EMUV_ERROR_INVALID_VALUE, "null");

    memset(&stats, 0xaa, sizeof stats);
    CHECK(emuv_stats(&stats, offsetof(struct emuv_stats, vram_peak)) == EMUV_OK, "an older program");
    CHECK(stats.size == offsetof(struct emuv_stats, vram_peak) && stats.vram_peak == 0xaaaaaaaaaaaaaaaau, "it is not overrun");
    CHECK(emuv_device_stats(gpu.device, &stats, sizeof stats) == EMUV_OK, "one device");
    CHECK(stats.size == sizeof stats && stats.devices == 1 && stats.allocations >= count, "%" PRIu64, stats.allocations);
    CHECK(stats.vram_used > 0 && stats.vram_used <= stats.vram_peak && stats.vram_peak <= stats.vram_budget, "VRAM");
    CHECK(stats.launches >= count && (stats.bound_permille <= 1000 || stats.bound_permille == UINT64_MAX), "the rest");
    struct { struct emuv_stats now; uint64_t more; } newer = {.more = 9};
    CHECK(emuv_stats(&newer.now, sizeof newer) == EMUV_OK && newer.now.size == sizeof stats && newer.more == 9, "a newer program");
}

static void check_in_a_child(void) {
    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0, "no child");
    if (child == 0) _exit(emuv_hint(buffers[0].at, 1, EMUV_HINT_COLD) == EMUV_ERROR_NOT_ACTIVE ? 0 : 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "a forked child is not told so");
}

int main(int argc, char **argv) {
    count = argument(argc, argv, 1, 16);
    size_t mib = argument(argc, argv, 2, 24), steps = argument(argc, argv, 4, 300);
    CHECK(count > 0 && count <= MOST && mib > 1 && mib <= PIECES, "too many");
    random_state = seed_argument(argc, argv, 3);
    const char *expected = getenv("EMUV_TEST_EXPECT");
    if (expected) CHECK(!strcmp(expected, "emuv") == (emuv_hint != NULL), "expected %s", expected);
    if (emuv_hint) CHECK(emuv_hint(1, 1, EMUV_HINT_HOT) == EMUV_ERROR_NOT_ACTIVE, "before the first call");
    start_gpu();
    for (int s = 0; s < STREAMS; s++) OK(cuStreamCreate(&streams[s], 1));
    size_t before = settled_free_bytes();
    for (size_t b = 0; b < count; b++) make(&buffers[b], (mib - pick(mib / 2)) * MIB);
    pthread_t beside;
    if (emuv_hint) {
        check_wrong_calls(&buffers[0]);
        check_in_a_child();
        CHECK(!pthread_create(&beside, NULL, hint_beside, NULL), "no thread");
        int code = emuv_mark("hints <begin>");
        CHECK(code == EMUV_OK || code == EMUV_ERROR_NOT_KEPT, "a mark gave %d", code);
    }
    for (size_t step = 0; step < steps; step++) {
        struct buffer *b = &buffers[pick(count)];
        switch (pick(9)) {
        case 0: fill(b); break;
        /* Discarded while it is in use, and used again. */
        case 1: mix(b); hint(b); mix(b); break;
        case 2: case 3: mix(b); break;
        case 4: case 5: hint(b); break;
        case 6: {
            size_t bytes = b->bytes;
            if (pick(4)) break;
            over = emuv_hint != NULL;
            if (over) pthread_join(beside, NULL);
            release(b);
            make(b, bytes);
            over = 0;
            if (emuv_hint) CHECK(!pthread_create(&beside, NULL, hint_beside, NULL), "no thread");
            break;
        }
        default: verify(b); break;
        }
    }
    over = 1;
    if (emuv_hint) {
        pthread_join(beside, NULL);
        emuv_mark("end");
    }
    for (size_t b = 0; b < count; b++)
        for (int i = 0; i < 8; i++) verify(&buffers[b]);
    for (size_t b = 0; b < count; b++) release(&buffers[b]);
    for (int s = 0; s < STREAMS; s++) OK(cuStreamSynchronize(streams[s]));
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, gpu.device));
    OK(cuMemPoolTrimTo(pool, 0));
    for (int s = 0; s < STREAMS; s++) OK(cuStreamDestroy_v2(streams[s]));
    check_free_is(before);
    printf("hints: ok, %zu steps, %zu discarded\n", steps, discarded);
    return 0;
}
