/* What the memory calls answer, case by case, as measured on a real driver (580, H200). Run with a ballast
 * that fills VRAM, the same must hold for memory that lives in RAM.
 * Arguments: [MiB of ballast taken first, default 0] */
#include "program.h"

static void bad_arguments(void) {
    CUdeviceptr block;
    size_t pitch;
    EXPECT(cuMemAlloc_v2(&block, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemAlloc_v2(NULL, 4096), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemAlloc_v2(&block, (size_t)1 << 45), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(cuMemAlloc_v2(&block, (size_t)-1), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(cuMemFree_v2(0), CUDA_SUCCESS);
    EXPECT(cuMemFree_v2(0x1234567), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemAllocPitch_v2(&block, &pitch, 100, 7, 3), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemAllocPitch_v2(&block, &pitch, 0, 7, 4), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemAllocPitch_v2(&block, &pitch, 10, 0, 4), CUDA_ERROR_INVALID_VALUE);
}

static void no_context(void) {
    CUdeviceptr block;
    OK(cuCtxSetCurrent(NULL));
    EXPECT(cuMemAlloc_v2(&block, 4096), CUDA_ERROR_INVALID_CONTEXT);
    EXPECT(cuMemAlloc_v2(&block, 64 * MIB), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuCtxSetCurrent(gpu.context));
}

/* Only the first byte of a live allocation can be freed, and once. */
static void freeing(size_t bytes) {
    CUdeviceptr block, other;
    OK(cuMemAlloc_v2(&block, bytes));
    OK(cuMemAlloc_v2(&other, bytes));
    CHECK(block % 512 == 0 && other % 512 == 0, "alignment of %llx, %llx", block, other);
    CHECK(block + bytes <= other || other + bytes <= block, "%llx and %llx overlap", block, other);
    if (bytes > 1) EXPECT(cuMemFree_v2(block + 1), CUDA_ERROR_INVALID_VALUE);
    if (bytes > 512) EXPECT(cuMemFree_v2(block + 512), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(block));
    EXPECT(cuMemFree_v2(block), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(other));
}

static void pitched(void) {
    static const unsigned elements[] = {4, 8, 16};
    for (size_t width = 1; width < 5000; width = width * 3 + 1) {
        for (size_t i = 0; i < sizeof elements / sizeof *elements; i++) {
            CUdeviceptr block, base;
            size_t pitch = 0, bytes = 0;
            OK(cuMemAllocPitch_v2(&block, &pitch, width, 7, elements[i]));
            CHECK(pitch == (width + 511) / 512 * 512, "pitch of %zu is %zu", width, pitch);
            OK(cuMemGetAddressRange_v2(&base, &bytes, block));
            CHECK(base == block && bytes >= pitch * 6 + width, "%zu bytes for a pitch of %zu", bytes, pitch);
            OK(cuMemsetD8_v2(block, 3, pitch * 6 + width));
            OK(cuMemFree_v2(block));
        }
    }
}

static void ranges(CUdeviceptr block, size_t size) {
    const size_t inside[] = {0, size / 3, size / 2, size - 1};
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) {
        CUdeviceptr base = 1;
        size_t bytes = 1;
        OK(cuMemGetAddressRange_v2(&base, &bytes, block + inside[i]));
        CHECK(base == block && bytes == size, "range at %zu is %llx + %zu, not %llx + %zu", inside[i], base, bytes, block, size);
        OK(cuMemGetAddressRange_v2(NULL, &bytes, block + inside[i]));
        OK(cuMemGetAddressRange_v2(&base, NULL, block + inside[i]));
        OK(cuMemGetAddressRange_v2(NULL, NULL, block + inside[i]));
    }
    CUdeviceptr base;
    size_t bytes;
    EXPECT(cuMemGetAddressRange_v2(&base, &bytes, 0x10), CUDA_ERROR_NOT_FOUND);
}

/* To the program, memory in RAM is device memory like any other. */
static void attributes(CUdeviceptr block, size_t size, CUdeviceptr at) {
    unsigned type = 9, managed = 9;
    int ordinal = -9;
    CUcontext context = NULL;
    CUdeviceptr start = 1, device = 1;
    size_t range = 1;
    unsigned long long id = 0;
    OK(cuPointerGetAttribute(&type, POINTER_MEMORY_TYPE, at));
    CHECK(type == MEMORY_DEVICE, "memory type %u", type);
    OK(cuPointerGetAttribute(&managed, POINTER_IS_MANAGED, at));
    CHECK((managed & 0xff) == 0, "managed %u", managed);
    OK(cuPointerGetAttribute(&ordinal, POINTER_DEVICE_ORDINAL, at));
    CHECK(ordinal == 0, "ordinal %d", ordinal);
    OK(cuPointerGetAttribute(&context, POINTER_CONTEXT, at));
    CHECK(context == gpu.context, "context %p", (void *)context);
    OK(cuPointerGetAttribute(&device, POINTER_DEVICE_POINTER, at));
    CHECK(device == at, "device pointer %llx of %llx", device, at);
    OK(cuPointerGetAttribute(&start, POINTER_RANGE_START, at));
    OK(cuPointerGetAttribute(&range, POINTER_RANGE_SIZE, at));
    CHECK(start == block && range == size, "range %llx + %zu, not %llx + %zu", start, range, block, size);
    OK(cuPointerGetAttribute(&id, POINTER_BUFFER_ID, at));
    CHECK(id != 0, "no buffer id");

    /* All at once; a host pointer, which there is none of, reads as NULL and spoils nothing. */
    unsigned type2 = 9, managed2 = 9;
    int ordinal2 = -9;
    void *host = (void *)1;
    CUdeviceptr start2 = 1;
    size_t range2 = 1;
    int which[] = {POINTER_MEMORY_TYPE, POINTER_IS_MANAGED, POINTER_DEVICE_ORDINAL,
                   POINTER_HOST_POINTER, POINTER_RANGE_START, POINTER_RANGE_SIZE};
    void *values[] = {&type2, &managed2, &ordinal2, &host, &start2, &range2};
    OK(cuPointerGetAttributes(6, which, values, at));
    CHECK(type2 == MEMORY_DEVICE && (managed2 & 0xff) == 0 && ordinal2 == 0, "type %u managed %u ordinal %d", type2, managed2, ordinal2);
    CHECK(!host, "a host pointer %p", host);
    CHECK(start2 == block && range2 == size, "range %llx + %zu", start2, range2);
}

static void unknown_pointers(void) {
    unsigned type = 9;
    EXPECT(cuPointerGetAttribute(&type, POINTER_MEMORY_TYPE, 0x1000), CUDA_ERROR_INVALID_VALUE);
    type = 9;
    int ordinal = 9;
    /* The range is not asked for: the driver leaves that as it was. */
    int which[] = {POINTER_MEMORY_TYPE, POINTER_DEVICE_ORDINAL};
    void *values[] = {&type, &ordinal};
    OK(cuPointerGetAttributes(2, which, values, 0x1000));
    CHECK(type == 0 && ordinal == -2, "type %u ordinal %d", type, ordinal);
}

/* A freed pointer is an unknown one. */
static void after_free(size_t size) {
    CUdeviceptr block, base;
    size_t bytes;
    unsigned type;
    OK(cuMemAlloc_v2(&block, size));
    OK(cuMemFree_v2(block));
    EXPECT(cuMemGetAddressRange_v2(&base, &bytes, block), CUDA_ERROR_NOT_FOUND);
    EXPECT(cuPointerGetAttribute(&type, POINTER_MEMORY_TYPE, block), CUDA_ERROR_INVALID_VALUE);
}

int main(int argc, char **argv) {
    size_t ballast_bytes = argument(argc, argv, 1, 0) * MIB;
    start_gpu();
    size_t before = settled_free_bytes();
    CUdeviceptr ballast[512];
    unsigned count = 0;
    for (size_t taken = 0; taken < ballast_bytes && count < 512; taken += 16 * MIB) {
        OK(cuMemAlloc_v2(&ballast[count], 16 * MIB));
        run_fill(ballast[count], 4 * MIB, count);
        count++;
    }

    bad_arguments();
    no_context();
    static const size_t sizes[] = {1, 512, 513, 100000, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 10 * MIB + 12345, 40 * MIB};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        CUdeviceptr block;
        freeing(sizes[i]);
        OK(cuMemAlloc_v2(&block, sizes[i]));
        ranges(block, sizes[i]);
        attributes(block, sizes[i], block);
        attributes(block, sizes[i], block + sizes[i] / 2);
        attributes(block, sizes[i], block + sizes[i] - 1);
        OK(cuMemFree_v2(block));
    }
    after_free(40 * MIB);
    pitched();
    unknown_pointers();

    for (unsigned i = 0; i < count; i++) {
        CHECK(run_reduce(ballast[i], 4 * MIB) == reduce_filled(i, 4 * MIB), "ballast %u changed", i);
        OK(cuMemFree_v2(ballast[i]));
    }
    check_free_is(before);
    printf("semantics: ok, ballast %zu MiB\n", ballast_bytes / MIB);
    return 0;
}
