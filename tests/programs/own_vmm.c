/* A program that manages its own address space: handles of device memory, mapped side by side, may lie in RAM
 * without the program noticing; they live while they are held or mapped. What is exported first is in VRAM.
 * Arguments: [MiB in all, default 320] */
#include "program.h"

#include <unistd.h>

enum { MOST = 256 };
static const size_t HANDLE = 8 * MIB;

static CUmemAllocationProp device_memory(void) {
    CUmemAllocationProp properties = {0};
    properties.type = ALLOCATION_PINNED;
    properties.location.type = LOCATION_DEVICE;
    properties.location.id = gpu.device;
    return properties;
}

static void allow(CUdeviceptr address, size_t bytes) {
    CUmemAccessDesc access = {{LOCATION_DEVICE, gpu.device}, ACCESS_READWRITE};
    OK(cuMemSetAccess(address, bytes, &access, 1));
}

int main(int argc, char **argv) {
    size_t count = argument(argc, argv, 1, 320) * MIB / HANDLE, bytes = count * HANDLE;
    CHECK(count >= 4 && count <= MOST, "%zu handles", count);
    start_gpu();
    size_t before = settled_free_bytes();

    CUdeviceptr range;
    CUmemGenericAllocationHandle handle[MOST];
    CUmemAllocationProp properties = device_memory();
    OK(cuMemAddressReserve(&range, bytes, 0, 0, 0));
    for (size_t h = 0; h < count; h++) {
        /* PyTorch asks for handles that can be exported, just in case. */
        properties.requestedHandleTypes = h % 2 ? HANDLE_POSIX_FD : 0;
        OK(cuMemCreate(&handle[h], HANDLE, &properties, 0));
        OK(cuMemMap(range + h * HANDLE, HANDLE, 0, handle[h], 0));
    }
    allow(range, bytes);
    CHECK(free_bytes() + bytes <= before + slack_bytes(), "%zu bytes of handles are not accounted", bytes);

    /* One kernel over all of it, whichever tier a handle lies in. */
    run_fill(range, bytes / 4, 99);
    uint64_t sum = reduce_filled(99, bytes / 4);
    CHECK(run_reduce(range, bytes / 4) == sum, "the sum is wrong");

    /* Wherever it lies, it is the device memory that was asked for. */
    for (size_t h = 0; h < count; h++) {
        CUmemAllocationProp found;
        unsigned type;
        OK(cuMemGetAllocationPropertiesFromHandle(&found, handle[h]));
        CHECK(found.location.type == LOCATION_DEVICE && found.location.id == gpu.device, "handle %zu: location %d %d", h, found.location.type, found.location.id);
        OK(cuPointerGetAttribute(&type, POINTER_MEMORY_TYPE, range + h * HANDLE + 12));
        CHECK(type == MEMORY_DEVICE, "handle %zu: memory type %u", h, type);
    }

    /* Released while mapped: the memory stays. Held again by its address: it outlives the mapping. */
    size_t last = count - 1;
    for (size_t h = 0; h < count; h++) OK(cuMemRelease(handle[h]));
    CHECK(run_reduce(range, bytes / 4) == sum, "the sum is wrong after the release");
    CUmemGenericAllocationHandle again;
    OK(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(range + last * HANDLE)));
    OK(cuMemUnmap(range + last * HANDLE, HANDLE));
    OK(cuMemMap(range + last * HANDLE, HANDLE, 0, again, 0));
    allow(range + last * HANDLE, HANDLE);
    CHECK(run_reduce(range, bytes / 4) == sum, "the sum is wrong after mapping again");
    OK(cuMemRelease(again));

    /* Exported before it is used: in VRAM, if there is room by then, whatever it was made in. */
    CUmemGenericAllocationHandle shared, imported;
    CUmemAllocationProp found;
    int file = -1;
    properties.requestedHandleTypes = HANDLE_POSIX_FD;
    OK(cuMemCreate(&shared, HANDLE, &properties, 0));
    OK(cuMemUnmap(range, HANDLE));
    OK(cuMemExportToShareableHandle(&file, shared, HANDLE_POSIX_FD, 0));
    OK(cuMemImportFromShareableHandle(&imported, (void *)(uintptr_t)file, HANDLE_POSIX_FD));
    close(file);
    OK(cuMemGetAllocationPropertiesFromHandle(&found, imported));
    CHECK(found.location.type == LOCATION_DEVICE, "exported memory lies at location %d", found.location.type);
    OK(cuMemMap(range, HANDLE, 0, shared, 0));
    allow(range, HANDLE);
    run_fill(range, HANDLE / 4, 5);
    OK(cuCtxSynchronize());
    OK(cuMemUnmap(range, HANDLE));
    OK(cuMemRelease(shared));
    OK(cuMemMap(range, HANDLE, 0, imported, 0));
    OK(cuMemRelease(imported));
    allow(range, HANDLE);
    CHECK(run_reduce(range, HANDLE / 4) == reduce_filled(5, HANDLE / 4), "imported memory is other memory");

    OK(cuMemUnmap(range, bytes));
    check_free_is(before);
    OK(cuMemAddressFree(range, bytes));
    printf("own_vmm: ok, %zu handles\n", count);
    return 0;
}
