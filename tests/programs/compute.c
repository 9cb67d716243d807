/* A computation over more memory than the card has: its checksums must equal those of a run where
 * everything fits. Prints one line of JSON with the checksums; nothing in it depends on where data lies.
 * Arguments: [MiB in all, default 384] [seed, default 1] [edge of the square matrices, default 96] */
#include "program.h"

enum { BUFFERS = 6, LAYERS = 2 };

/* Numbers in [-1, 1): arithmetic on them stays far from infinities, whose bits GPUs and CPUs may choose
 * differently. */
static float *random_floats(uint64_t count, uint64_t *random) {
    float *values = malloc(count * sizeof *values);
    CHECK(values, "no memory");
    for (uint64_t i = 0; i < count; i++) values[i] = (float)(int32_t)next_random(random) / 2147483648.0f;
    return values;
}

static void upload_floats(CUdeviceptr to, uint64_t count, uint64_t *random) {
    float *values = random_floats(count, random);
    OK(cuMemcpyHtoD_v2(to, values, count * sizeof *values));
    free(values);
}

int main(int argc, char **argv) {
    size_t total = argument(argc, argv, 1, 384) * MIB;
    uint64_t seed = argument(argc, argv, 2, 1), random = seed;
    uint32_t edge = (uint32_t)argument(argc, argv, 3, 96);
    start_gpu();

    /* Sizes that are no multiple of anything, so that slices cross chunk boundaries. */
    uint64_t words = (total / BUFFERS / 4) - 1237;
    CUdeviceptr buffer[BUFFERS];
    for (unsigned b = 0; b < BUFFERS; b++) {
        CUresult result = cuMemAlloc_v2(&buffer[b], words * 4);
        if (result != CUDA_SUCCESS) {
            printf("{\"error\": %d, \"allocated\": %u}\n", result, b);
            return result == CUDA_ERROR_OUT_OF_MEMORY ? 2 : 1;
        }
        run_fill(buffer[b], words, (uint32_t)(seed * 31 + b));
    }

    uint64_t picks = words / 16 < MIB ? words / 16 : MIB;
    uint32_t *indices = malloc(picks * 4);
    CHECK(indices, "no memory");
    uint64_t span = (uint64_t)1 << 20;
    if (span > words / 2) span = words / 2;
    uint64_t matrix = (uint64_t)edge * edge;
    CHECK(3 * matrix < words && picks + span < words, "too little memory for these sizes");

    for (unsigned layer = 0; layer < LAYERS; layer++) {
        for (unsigned b = 0; b < BUFFERS; b++) run_mix(buffer[b], words, layer * 16 + b);

        /* Random reads over all of one buffer, written into the next. */
        CUdeviceptr from = buffer[layer % BUFFERS], to = buffer[(layer + 1) % BUFFERS];
        CUdeviceptr list = buffer[(layer + 2) % BUFFERS];
        for (uint64_t i = 0; i < picks; i++) indices[i] = (uint32_t)(next_random(&random) % words);
        OK(cuMemcpyHtoD_v2(list, indices, picks * 4));
        CUdeviceptr target = to + (words - picks) * 4;
        void *gather[] = {&target, &from, &list, &picks};
        launch(gpu.gather, picks, NULL, gather);

        /* y += a * x on slices in the middle of two buffers. */
        CUdeviceptr x = buffer[(layer + 3) % BUFFERS] + (words / 2 - span / 2) * 4;
        CUdeviceptr y = buffer[(layer + 4) % BUFFERS] + (words / 2 - span / 2) * 4;
        upload_floats(x, span, &random);
        upload_floats(y, span, &random);
        float factor = 0.25f + (float)layer;
        void *axpy[] = {&y, &x, &factor, &span};
        launch(gpu.axpy, span, NULL, axpy);

        /* c = a * b, the three in three different buffers, c at the very end of one. */
        CUdeviceptr a = buffer[(layer + 5) % BUFFERS], b = buffer[layer % BUFFERS] + 4096;
        CUdeviceptr c = buffer[(layer + 3) % BUFFERS] + (words - matrix) * 4;
        upload_floats(a, matrix, &random);
        upload_floats(b, matrix, &random);
        void *gemm[] = {&c, &a, &b, &edge, &edge, &edge};
        launch(gpu.gemm, matrix, NULL, gemm);
    }

    /* Summed before the next step overwrites it. */
    uint64_t sums[BUFFERS + 1];
    sums[BUFFERS] = run_reduce(buffer[5], words);

    /* Pointers kept in memory: a ring through one buffer, walked by one thread. */
    enum { RING = 512 };
    uint64_t steps = 3 * RING + 17, stride = (words * 4 / RING) & ~(uint64_t)7;
    for (uint64_t i = 0; i < RING; i++) {
        CUdeviceptr next = buffer[5] + (i * 5 + 1) % RING * stride;
        OK(cuMemcpyHtoD_v2(buffer[5] + i * stride, &next, 8));
    }
    CUdeviceptr out = buffer[4], head = buffer[5], end;
    void *chase[] = {&out, &head, &steps};
    launch(gpu.chase, 1, NULL, chase);
    OK(cuMemcpyDtoH_v2(&end, out, 8));
    uint64_t at = 0;
    for (uint64_t i = 0; i < steps; i++) at = (at * 5 + 1) % RING;
    CHECK(end == buffer[5] + at * stride, "the walk ended at %llx", end);
    /* Addresses differ from run to run: they are overwritten before the sums. */
    run_fill(buffer[5], words, 99);
    OK(cuMemsetD32_v2(buffer[4], 0, 2));

    /* Pages touched through a list of ranges that lies in memory itself. */
    uint64_t ranges[2 * BUFFERS];
    uint32_t pairs = BUFFERS - 1, add = 12345;
    for (unsigned b = 0; b < pairs; b++) {
        ranges[2 * b] = buffer[b];
        ranges[2 * b + 1] = words * 4;
    }
    CUdeviceptr list;
    OK(cuMemAlloc_v2(&list, sizeof ranges));
    OK(cuMemcpyHtoD_v2(list, ranges, sizeof ranges));
    void *touch[] = {&list, &pairs, &add};
    launch(gpu.touch, words / 1024, NULL, touch);

    printf("{\"error\": 0, \"bytes\": %" PRIu64 ", \"seed\": %" PRIu64 ", \"checksums\": [", words * 4 * BUFFERS, seed);
    for (unsigned b = 0; b < BUFFERS; b++) sums[b] = run_reduce(buffer[b], words);
    for (unsigned b = 0; b <= BUFFERS; b++) printf("%s\"%016" PRIx64 "\"", b ? ", " : "", sums[b]);
    printf("]}\n");
    for (unsigned b = 0; b < BUFFERS; b++) OK(cuMemFree_v2(buffer[b]));
    OK(cuMemFree_v2(list));
    free(indices);
    return 0;
}
