/* Memory of other interfaces, used from CUDA: an external object (here memory that CUDA itself exported, since that needs
 * no Vulkan) and a buffer of OpenGL (the simulated driver makes one up; a real one refuses without an OpenGL context).
 * Kernels and copies reach it beside memory that emuV moves; it is charged while it is lent, and the charge comes back.
 * Arguments: [MiB lent, default 96] [MiB of other memory, default 288] */
#include "program.h"

/* Chunks on their way are charged in both places. */
static const size_t MOVING = 64 * MIB;

static size_t lent_bytes, other_bytes;
static CUdeviceptr other;

static int under_emuv(void) {
    const char *expected = getenv("EMUV_TEST_EXPECT");
    return expected && !strcmp(expected, "emuv");
}

/* Written by a kernel, copied to memory that may lie anywhere and back again. */
static void use(CUdeviceptr lent, uint32_t seed) {
    size_t count = lent_bytes / 4;
    run_fill(lent, count, seed);
    CHECK(run_reduce(lent, count) == reduce_filled(seed, count), "the sum is wrong");
    OK(cuMemcpyDtoD_v2(other, lent, lent_bytes));
    run_fill(other + other_bytes / 2, other_bytes / 16, seed + 1);
    OK(cuMemsetD32_v2(lent, 0, count));
    OK(cuMemcpyDtoD_v2(lent, other, lent_bytes));
    CHECK(run_reduce(lent, count) == reduce_filled(seed, count), "the sum is wrong after two copies");
}

static void check_charged(size_t before) {
    size_t now = free_bytes();
    if (under_emuv()) CHECK(now + lent_bytes <= before + MOVING, "%zu bytes free before, %zu after", before, now);
}

static const char *external(void) {
    CUmemAllocationProp properties = {0};
    properties.type = ALLOCATION_PINNED;
    properties.location.type = LOCATION_DEVICE;
    properties.location.id = gpu.device;
    properties.requestedHandleTypes = HANDLE_POSIX_FD;
    CUmemGenericAllocationHandle handle;
    int file = -1;
    OK(cuMemCreate(&handle, lent_bytes, &properties, 0));
    OK(cuMemExportToShareableHandle(&file, handle, HANDLE_POSIX_FD, 0));

    size_t before = free_bytes();
    CUDA_EXTERNAL_MEMORY_HANDLE_DESC description = {0};
    description.type = EXTERNAL_OPAQUE_FD;
    description.handle.fd = file;
    description.size = lent_bytes;
    CUexternalMemory object;
    EXPECT(cuImportExternalMemory(NULL, &description), CUDA_ERROR_INVALID_VALUE);
    CUresult result = cuImportExternalMemory(&object, &description);
    if (result == CUDA_SUCCESS) {
        check_charged(before);
        CUDA_EXTERNAL_MEMORY_BUFFER_DESC part = {0};
        CUdeviceptr buffer;
        part.size = lent_bytes;
        OK(cuExternalMemoryGetMappedBuffer(&buffer, object, &part));
        use(buffer, 5);
        OK(cuMemFree_v2(buffer));
        OK(cuDestroyExternalMemory(object));
        CHECK(free_bytes() + slack_bytes() + MOVING >= before, "the charge did not come back");
    }
    OK(cuMemRelease(handle));
    return result == CUDA_SUCCESS ? "used" : "refused";
}

static const char *graphics(void) {
    size_t before = free_bytes();
    CUgraphicsResource resource;
    if (cuGraphicsGLRegisterBuffer(&resource, (unsigned)(lent_bytes / MIB), 0) != CUDA_SUCCESS) return "refused";
    CUdeviceptr buffer;
    size_t bytes;
    FAILS(cuGraphicsResourceGetMappedPointer_v2(&buffer, &bytes, resource));
    for (int round = 0; round < 2; round++) {
        OK(cuGraphicsMapResources(1, &resource, NULL));
        OK(cuGraphicsResourceGetMappedPointer_v2(&buffer, &bytes, resource));
        CHECK(bytes == lent_bytes, "%zu bytes", bytes);
        check_charged(before);
        use(buffer, 7 + 2 * (uint32_t)round);
        OK(cuGraphicsUnmapResources(1, &resource, NULL));
    }
    OK(cuGraphicsUnregisterResource(resource));
    CHECK(free_bytes() + slack_bytes() + MOVING >= before, "the charge did not come back");
    return "used";
}

int main(int argc, char **argv) {
    lent_bytes = argument(argc, argv, 1, 96) * MIB;
    other_bytes = argument(argc, argv, 2, 288) * MIB;
    CHECK(lent_bytes && lent_bytes * 2 <= other_bytes, "%zu of %zu bytes", lent_bytes, other_bytes);
    start_gpu();
    size_t before = settled_free_bytes();
    OK(cuMemAlloc_v2(&other, other_bytes));
    const char *object = external(), *buffer = graphics();
    OK(cuMemFree_v2(other));
    check_free_is(before);
    printf("external: ok, external object %s, buffer of OpenGL %s\n", object, buffer);
    return 0;
}
