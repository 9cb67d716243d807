/* Producers and consumers on several streams: each step works on one buffer or copies one to another, on any
 * stream, and only events say what must come before what. Events are recorded again while others still wait for
 * their earlier record. Nothing waits for the device until the end.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [steps, default 100] [seed] [streams, default 4] */
#include "program.h"

struct buffer {
    CUdeviceptr at;
    struct contents contents;
    CUevent used;
};

static void before_use(CUstream stream, struct buffer *buffer) {
    OK(cuStreamWaitEvent(stream, buffer->used, 0));
}

static void after_use(CUstream stream, struct buffer *buffer) {
    OK(cuEventRecord(buffer->used, stream));
}

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 12), bytes = argument(argc, argv, 2, 32) * MIB;
    size_t steps = argument(argc, argv, 3, 100);
    uint64_t random = seed_argument(argc, argv, 4), words = bytes / 4;
    size_t streams = argument(argc, argv, 5, 4);
    CHECK(buffers > 1 && bytes > 0 && streams > 0, "nothing to do");
    start_gpu();
    size_t before = settled_free_bytes();
    struct buffer *buffer = malloc(buffers * sizeof *buffer);
    CUstream *stream = malloc(streams * sizeof *stream);
    uint64_t *expected = calloc(steps, 8), *got = calloc(steps, 8);
    CUdeviceptr sums;
    CHECK(buffer && stream && expected && got && steps, "no memory");
    for (size_t s = 0; s < streams; s++) OK(cuStreamCreate(&stream[s], STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&sums, steps * 8));
    OK(cuMemsetD32_v2(sums, 0, steps * 2));
    OK(cuCtxSynchronize());
    for (size_t b = 0; b < buffers; b++) {
        CUstream on = stream[b % streams];
        OK(cuMemAlloc_v2(&buffer[b].at, bytes));
        OK(cuEventCreate(&buffer[b].used, EVENT_DISABLE_TIMING));
        buffer[b].contents = filled((uint32_t)(7 * b));
        run_fill_on(on, buffer[b].at, words, buffer[b].contents.seed);
        after_use(on, &buffer[b]);
    }
    uint64_t window = words < 65536 ? words : 65536;
    for (uint32_t step = 0; step < steps; step++) {
        CUstream on = stream[next_random(&random) % streams];
        struct buffer *one = &buffer[next_random(&random) % buffers], *other = &buffer[next_random(&random) % buffers];
        before_use(on, one);
        if (one != other) before_use(on, other);
        switch (one == other ? 0 : next_random(&random) % 4) {
        case 0:
        case 1:
            run_mix_on(on, one->at, words, step);
            one->contents = mixed(one->contents, step);
            break;
        case 2:
            OK(cuMemcpyDtoDAsync_v2(one->at, other->at, bytes, on));
            one->contents = other->contents;
            break;
        default:
            /* What a consumer sees at this moment, of the beginning of one buffer and of the other. */
            run_reduce_on(on, sums + 8 * step, one->at, window);
            run_reduce_on(on, sums + 8 * step, other->at, window);
            expected[step] = reduce_contents(one->contents, window) + reduce_contents(other->contents, window);
            break;
        }
        after_use(on, one);
        if (one != other) after_use(on, other);
    }
    OK(cuCtxSynchronize());
    OK(cuMemcpyDtoH_v2(got, sums, steps * 8));
    for (size_t step = 0; step < steps; step++)
        CHECK(got[step] == expected[step], "step %zu: sum %" PRIu64 ", not %" PRIu64, step, got[step], expected[step]);
    for (size_t b = 0; b < buffers; b++) {
        check_contents(buffer[b].at, words, buffer[b].contents, b);
        OK(cuMemFree_v2(buffer[b].at));
        OK(cuEventDestroy_v2(buffer[b].used));
    }
    OK(cuMemFree_v2(sums));
    for (size_t s = 0; s < streams; s++) OK(cuStreamDestroy_v2(stream[s]));
    check_free_is(before);
    printf("producers: ok, %zu x %zu MiB, %zu steps on %zu streams\n", buffers, bytes / MIB, steps, streams);
    return 0;
}
