/* Memory belongs to the context that allocated it and goes with it, large or small, in VRAM or in RAM.
 * Arguments: [MiB allocated in each context, default 320] */
#include "program.h"

static CUdeviceptr large, small;

static void allocate(size_t bytes) {
    OK(cuMemAlloc_v2(&large, bytes));
    OK(cuMemAlloc_v2(&small, 1000));
    OK(cuMemsetD8_v2(large, 7, bytes));
    OK(cuMemsetD8_v2(small, 7, 1000));
}

/* A copy from it is not tried: what a driver says to an address that nobody owns is its own affair. */
static void check_gone(void) {
    CUdeviceptr base;
    size_t bytes;
    FAILS(cuMemGetAddressRange_v2(&base, &bytes, large));
    FAILS(cuMemFree_v2(large));
    FAILS(cuMemFree_v2(small));
}

int main(int argc, char **argv) {
    size_t bytes = argument(argc, argv, 1, 320) * MIB;
    start_gpu();
    size_t before = settled_free_bytes();

    /* A context of its own, made and destroyed three times over: were its memory kept, it would run out. */
    for (int round = 0; round < 3; round++) {
        CUcontext own;
        OK(cuCtxCreate_v2(&own, 0, gpu.device));
        allocate(bytes);
        OK(cuCtxDestroy_v2(own));
        OK(cuCtxSetCurrent(gpu.context));
        check_gone();
        check_free_is(before);
    }

    /* The primary context, reset while its handle is held. */
    allocate(bytes);
    OK(cuDevicePrimaryCtxReset_v2(gpu.device));
    unsigned char byte;
    FAILS(cuMemcpyDtoH_v2(&byte, large, 1));
    OK(cuDevicePrimaryCtxRelease_v2(gpu.device));
    OK(cuDevicePrimaryCtxRetain(&gpu.context, gpu.device));
    OK(cuCtxSetCurrent(gpu.context));
    load_kernels();
    size_t after_reset = settled_free_bytes();
    size_t slack = slack_bytes();
    CHECK(after_reset + slack >= before, "free was %zu, is %zu after the reset", before, after_reset);
    check_gone();

    /* The primary context, released for the last time with memory still allocated. */
    allocate(bytes);
    OK(cuDevicePrimaryCtxRelease_v2(gpu.device));
    OK(cuDevicePrimaryCtxRetain(&gpu.context, gpu.device));
    OK(cuCtxSetCurrent(gpu.context));
    load_kernels();
    check_free_is(settled_free_bytes());
    CHECK(free_bytes() + slack >= before, "free was %zu, is %zu after the release", before, free_bytes());
    check_gone();
    check_compute(3 * MIB);
    printf("contexts: ok, 5 x %zu MiB\n", bytes / MIB);
    return 0;
}
