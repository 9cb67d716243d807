/* Reaches one allocation from another: emuv_gather reads src[idx[i]], and here the indices lead from `near` into `far`,
 * so that no argument and no word in memory is an address of `far`. Correct on any GPU, and what `emuv verify` must
 * find. Arguments: [MiB of each allocation, default 8] [1: give gather `far` openly] */
#include "program.h"

int main(int argc, char **argv) {
    size_t bytes = argument(argc, argv, 1, 8) * MIB;
    int openly = argument(argc, argv, 2, 0) == 1;
    enum { COUNT = 1024 };
    start_gpu();
    CUdeviceptr near, far, indices, out;
    OK(cuMemAlloc_v2(&near, bytes));
    OK(cuMemAlloc_v2(&far, bytes));
    OK(cuMemAlloc_v2(&indices, 4 * MIB));
    OK(cuMemAlloc_v2(&out, 4 * MIB));
    if (far < near) {
        CUdeviceptr other = near;
        near = far;
        far = other;
    }
    uint64_t distance = openly ? 0 : (far - near) / 4;
    CHECK(distance + COUNT <= UINT32_MAX, "too far apart: %" PRIu64 " words", distance);
    run_fill(near, bytes / 4, 1);
    run_fill(far, bytes / 4, 2);
    uint32_t words[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) words[i] = (uint32_t)distance + i;
    OK(cuMemcpyHtoD_v2(indices, words, sizeof words));
    uint64_t count = COUNT;
    CUdeviceptr source = openly ? far : near;
    void *parameters[] = {&out, &source, &indices, &count};
    launch(gpu.gather, count, NULL, parameters);
    OK(cuMemcpyDtoH_v2(words, out, sizeof words));
    for (uint32_t i = 0; i < COUNT; i++) CHECK(words[i] == mix_word(i + 2), "word %u", i);
    printf("hidden_pointer: ok\n");
    return 0;
}
