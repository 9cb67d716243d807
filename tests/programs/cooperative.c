/* Cooperative launches, of both kinds, on more memory than VRAM holds: all blocks of such a launch run at once, so
 * nothing may take a launch apart or put off a part of it.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [rounds, default 6] [seed] */
#include "program.h"

static unsigned blocks;

static void launch_call(CUfunction function, CUstream stream, void **parameters) {
    OK(cuLaunchCooperativeKernel(function, blocks, 1, 1, 256, 1, 1, 0, stream, parameters));
}

static void launch_structure(CUfunction function, CUstream stream, void **parameters) {
    CUlaunchAttribute attribute = {.id = LAUNCH_COOPERATIVE, .value.cooperative = 1};
    CUlaunchConfig config = {blocks, 1, 1, 256, 1, 1, 0, stream, &attribute, 1};
    OK(cuLaunchKernelEx(&config, function, parameters, NULL));
}

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 12), bytes = argument(argc, argv, 2, 32) * MIB;
    size_t rounds = argument(argc, argv, 3, 6);
    uint64_t random = seed_argument(argc, argv, 4), words = bytes / 4;
    CHECK(buffers > 1 && bytes > 0, "nothing to do");
    start_gpu();
    int possible, processors;
    OK(cuDeviceGetAttribute(&possible, DEVICE_COOPERATIVE_LAUNCH, gpu.device));
    OK(cuDeviceGetAttribute(&processors, DEVICE_MULTIPROCESSORS, gpu.device));
    if (!possible) {
        printf("cooperative: ok, this device has no cooperative launches\n");
        return 0;
    }
    /* One small block on each multiprocessor always fits. */
    blocks = (unsigned)processors;
    size_t before = settled_free_bytes();
    CUdeviceptr table, *buffer = malloc(buffers * sizeof *buffer);
    struct contents *contents = malloc(buffers * sizeof *contents);
    CUstream stream;
    CHECK(buffer && contents, "no memory");
    OK(cuStreamCreate(&stream, STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&table, buffers * 8));
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        contents[b] = filled((uint32_t)b);
        void *parameters[] = {&buffer[b], &words, &contents[b].seed};
        (b % 2 ? launch_call : launch_structure)(gpu.fill, stream, parameters);
    }
    OK(cuMemcpyHtoDAsync_v2(table, buffer, buffers * 8, stream));
    for (uint32_t round = 0; round < rounds; round++) {
        /* A run of buffers through the array of pointers, and one by its address. */
        uint64_t first = next_random(&random) % buffers, count = 1 + next_random(&random) % (buffers - first);
        CUdeviceptr from = table + 8 * first;
        void *batched[] = {&from, &count, &words, &round};
        (round % 2 ? launch_call : launch_structure)(gpu.batched_mix, stream, batched);
        for (size_t b = first; b < first + count; b++) contents[b] = mixed(contents[b], round);
        size_t b = next_random(&random) % buffers;
        void *single[] = {&buffer[b], &words, &round};
        (round % 2 ? launch_structure : launch_call)(gpu.mix, stream, single);
        contents[b] = mixed(contents[b], round);
    }
    for (size_t b = 0; b < buffers; b++) {
        check_contents(buffer[b], words, contents[b], b);
        OK(cuMemFree_v2(buffer[b]));
    }
    OK(cuMemFree_v2(table));
    OK(cuStreamDestroy_v2(stream));
    check_free_is(before);
    printf("cooperative: ok, %zu x %zu MiB, %zu rounds of %u blocks\n", buffers, bytes / MIB, rounds, blocks);
    return 0;
}
