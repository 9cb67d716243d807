/* A pointer in a variable of the module: kernels work on the buffer that it names and are given no address at all.
 * It is set by a copy to the variable's address, by a kernel, and by a copy on the device.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [rounds, default 40] [seed] */
#include "program.h"

int main(int argc, char **argv) {
    size_t buffers = argument(argc, argv, 1, 12), bytes = argument(argc, argv, 2, 32) * MIB;
    size_t rounds = argument(argc, argv, 3, 40), size;
    uint64_t random = seed_argument(argc, argv, 4), words = bytes / 4;
    CHECK(buffers > 1 && bytes > 0, "nothing to do");
    start_gpu();
    CUfunction global_mix, global_set;
    CUdeviceptr variable, saved, *buffer = malloc(buffers * sizeof *buffer);
    struct contents *contents = malloc(buffers * sizeof *contents);
    CHECK(buffer && contents, "no memory");
    OK(cuModuleGetFunction(&global_mix, gpu.module, "emuv_global_mix"));
    OK(cuModuleGetFunction(&global_set, gpu.module, "emuv_global_set"));
    OK(cuModuleGetGlobal_v2(&variable, &size, gpu.module, "emuv_pointer"));
    CHECK(size == 8, "the variable has %zu bytes", size);
    size_t before = settled_free_bytes(), in_saved = 0;
    OK(cuMemAlloc_v2(&saved, 8));
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        contents[b] = filled((uint32_t)b);
        run_fill(buffer[b], words, (uint32_t)b);
    }
    OK(cuMemcpyHtoD_v2(saved, &buffer[0], 8));
    for (uint32_t round = 0; round < rounds; round++) {
        size_t b = next_random(&random) % buffers;
        void *set[] = {&buffer[b]}, *mix[] = {&words, &round};
        switch (next_random(&random) % 3) {
        case 0:
            OK(cuMemcpyHtoD_v2(variable, &buffer[b], 8));
            break;
        case 1:
            launch(global_set, 1, NULL, set);
            break;
        default:
            /* From where it was saved, which then gets another one. */
            OK(cuMemcpyDtoD_v2(variable, saved, 8));
            OK(cuMemcpyHtoD_v2(saved, &buffer[b], 8));
            size_t next = b;
            b = in_saved;
            in_saved = next;
            break;
        }
        launch(global_mix, words, NULL, mix);
        contents[b] = mixed(contents[b], round);
        /* Another buffer by its address, so that what the variable names is not the last one used. */
        size_t other = next_random(&random) % buffers;
        run_mix(buffer[other], words, round);
        contents[other] = mixed(contents[other], round);
        if (next_random(&random) % 2) {
            launch(global_mix, words, NULL, mix);
            contents[b] = mixed(contents[b], round);
        }
    }
    for (size_t b = 0; b < buffers; b++) {
        check_contents(buffer[b], words, contents[b], b);
        OK(cuMemFree_v2(buffer[b]));
    }
    OK(cuMemFree_v2(saved));
    check_free_is(before);
    printf("global_pointer: ok, %zu x %zu MiB, %zu rounds\n", buffers, bytes / MIB, rounds);
    return 0;
}
