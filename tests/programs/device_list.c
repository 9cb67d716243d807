/* A linked list that kernels build and follow through many buffers: a walk is given one address and reaches all of
 * them. Between walks other buffers are worked on, so that what the list lies in has gone elsewhere.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [rounds, default 8] [seed] */
#include "program.h"

enum { STRIDE = 65536 };

static void run_walk(CUdeviceptr out, CUdeviceptr head, uint64_t steps) {
    void *parameters[] = {&out, &head, &steps};
    launch(gpu.walk, 1, NULL, parameters);
}

static void run_chase(CUdeviceptr out, CUdeviceptr head, uint64_t steps) {
    void *parameters[] = {&out, &head, &steps};
    launch(gpu.chase, 1, NULL, parameters);
}

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 12), bytes = argument(argc, argv, 2, 32) * MIB;
    size_t rounds = argument(argc, argv, 3, 8);
    uint64_t random = seed_argument(argc, argv, 4), nodes = bytes / STRIDE, stride = STRIDE;
    CHECK(buffers > 1 && nodes > 1, "nothing to do");
    start_gpu();
    size_t before = settled_free_bytes();
    /* The first half of the buffers holds the list, the second half is other work. */
    size_t linked = (buffers + 1) / 2;
    CUdeviceptr out, *buffer = malloc(buffers * sizeof *buffer);
    struct contents *contents = malloc(buffers * sizeof *contents);
    CHECK(buffer && contents, "no memory");
    OK(cuMemAlloc_v2(&out, 16));
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        contents[b] = filled((uint32_t)b);
        if (b < linked) {
            void *parameters[] = {&buffer[b], &stride, &nodes};
            launch(gpu.link, nodes, NULL, parameters);
        } else {
            run_fill(buffer[b], bytes / 4, (uint32_t)b);
        }
    }
    /* The ring of each buffer is opened at its end, towards the next buffer: by a copy and by a kernel in turn. */
    for (size_t b = 0; b < linked; b++) {
        CUdeviceptr end = buffer[b] + (nodes - 1) * STRIDE, next = buffer[(b + 1) % linked];
        if (b % 2) OK(cuMemcpyHtoD_v2(end, &next, sizeof next));
        else run_store_pointers_on(NULL, end, next, 0, 1);
    }
    uint64_t position = 0, total = linked * nodes;
    CUdeviceptr head = buffer[0];
    for (uint32_t round = 0; round < rounds; round++) {
        for (size_t b = linked; b < buffers; b++) {
            run_mix(buffer[b], bytes / 4, round);
            contents[b] = mixed(contents[b], round);
        }
        uint64_t steps = total / 2 + next_random(&random) % total, sum = 0, got[2];
        for (uint64_t i = 0; i < steps; i++) sum += (position + i) % total % nodes;
        run_walk(out, head, steps);
        /* Where the next round begins is what the device found at the end of the way. */
        run_chase(out + 8, head, steps);
        OK(cuMemcpyDtoH_v2(got, out, sizeof got));
        position = (position + steps) % total;
        CHECK(got[0] == sum, "round %u: the sum of %" PRIu64 " nodes is %" PRIu64 ", not %" PRIu64, round, steps, got[0], sum);
        head = got[1];
        CUdeviceptr expected = buffer[position / nodes] + position % nodes * STRIDE;
        CHECK(head == expected, "round %u: at %llx, not at %llx", round, head, expected);
    }
    for (size_t b = linked; b < buffers; b++) check_contents(buffer[b], bytes / 4, contents[b], b);
    for (size_t b = 0; b < buffers; b++) OK(cuMemFree_v2(buffer[b]));
    OK(cuMemFree_v2(out));
    check_free_is(before);
    printf("device_list: ok, %zu x %zu MiB, %" PRIu64 " nodes, %zu rounds\n", buffers, bytes / MIB, total, rounds);
    return 0;
}
