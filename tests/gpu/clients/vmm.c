/* A program with virtual memory management of its own, in the driver API; it frees all that it takes.
 *
 *   cc -O2 -I <toolkit>/include vmm.c -lcuda        vmm --seed N
 *
 * CLIENT_HOLD_MIB of handles are taken first, so that under a VRAM budget of that size the rest spills.
 */
#include <cuda.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)
#define PIECES 24

static unsigned passed, failed;

#define DO(call)                                                            \
    do {                                                                    \
        CUresult result_ = (call);                                          \
        if (result_ != CUDA_SUCCESS) return fail(#call, (int)result_);      \
    } while (0)
#define REQUIRE(condition)                                                  \
    do {                                                                    \
        if (!(condition)) return fail(#condition, -1);                      \
    } while (0)

static const char *reason;
static int reason_code;

static uint64_t fail(const char *what, int code) {
    reason = what;
    reason_code = code;
    return 0;
}

/* A check returns a digest of what it saw, or 0. */
static void run(const char *name, uint64_t (*check)(unsigned), unsigned seed) {
    reason = NULL;
    uint64_t digest = check(seed);
    if (reason) {
        printf("FAIL %s %s: %d\n", name, reason, reason_code);
        failed++;
    } else {
        printf("PASS %s %016llx\n", name, (unsigned long long)digest);
        passed++;
    }
    fflush(stdout);
}

static uint64_t hash(const void *data, size_t bytes) {
    uint64_t state = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) state = (state ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return state | 1;
}

static CUmemAllocationProp device_memory(void) {
    CUmemAllocationProp prop;
    memset(&prop, 0, sizeof prop);
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    return prop;
}

static CUresult allow(CUdeviceptr address, size_t bytes) {
    CUmemAccessDesc access;
    memset(&access, 0, sizeof access);
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return cuMemSetAccess(address, bytes, &access, 1);
}

static CUmemGenericAllocationHandle held;

static uint64_t hold(unsigned seed) {
    (void)seed;
    CUmemAllocationProp prop = device_memory();
    const char *mib = getenv("CLIENT_HOLD_MIB");
    DO(cuMemCreate(&held, (size_t)(mib ? atol(mib) : 64) * MIB, &prop, 0));
    return 1;
}

static uint64_t granularity(unsigned seed) {
    (void)seed;
    size_t least = 0, recommended = 0;
    CUmemAllocationProp prop = device_memory();
    DO(cuMemGetAllocationGranularity(&least, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    DO(cuMemGetAllocationGranularity(&recommended, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
    REQUIRE(least == 2 * MIB && recommended % least == 0);
    CUmemGenericAllocationHandle handle;
    REQUIRE(cuMemCreate(&handle, least + 1, &prop, 0) == CUDA_ERROR_INVALID_VALUE);
    return least;
}

/* A range that grows piece by piece, as expandable segments do, is written, then shrinks from both ends. */
static uint64_t growing_segment(unsigned seed) {
    CUdeviceptr base;
    CUmemGenericAllocationHandle handles[PIECES];
    size_t piece = 20 * MIB, bytes = PIECES * piece;
    CUmemAllocationProp prop = device_memory();
    DO(cuMemAddressReserve(&base, bytes, 0, 0, 0));
    for (size_t i = 0; i < PIECES; i++) {
        DO(cuMemCreate(&handles[i], piece, &prop, 0));
        DO(cuMemMap(base + i * piece, piece, 0, handles[i], 0));
        DO(allow(base + i * piece, piece));
        DO(cuMemsetD32(base + i * piece, seed + (unsigned)i, piece / 4));
    }
    unsigned *host = malloc(bytes);
    DO(cuMemcpyDtoH(host, base, bytes));
    for (size_t i = 0; i < PIECES; i++)
        REQUIRE(host[i * piece / 4] == seed + i && host[(i + 1) * piece / 4 - 1] == seed + i);
    uint64_t digest = hash(host, 3 * MIB);
    for (size_t i = 0; i < PIECES; i++) {
        size_t at = i % 2 ? PIECES - 1 - i / 2 : i / 2;
        DO(cuMemUnmap(base + at * piece, piece));
        DO(cuMemRelease(handles[at]));
    }
    DO(cuMemAddressFree(base, bytes));
    free(host);
    return digest;
}

/* One handle at two addresses: writing through one is seen through the other. */
static uint64_t aliased(unsigned seed) {
    CUdeviceptr one, other;
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = device_memory();
    size_t bytes = 8 * MIB;
    DO(cuMemCreate(&handle, bytes, &prop, 0));
    DO(cuMemAddressReserve(&one, bytes, 0, 0, 0));
    DO(cuMemAddressReserve(&other, bytes, 0, 0, 0));
    DO(cuMemMap(one, bytes, 0, handle, 0));
    DO(cuMemMap(other, bytes, 0, handle, 0));
    DO(allow(one, bytes));
    DO(allow(other, bytes));
    DO(cuMemsetD32(one, seed, bytes / 4));
    DO(cuCtxSynchronize());
    unsigned seen = 0;
    DO(cuMemcpyDtoH(&seen, other + bytes - 4, 4));
    REQUIRE(seen == seed);
    DO(cuMemUnmap(one, bytes));
    DO(cuMemcpyDtoH(&seen, other, 4));
    REQUIRE(seen == seed);
    DO(cuMemUnmap(other, bytes));
    DO(cuMemRelease(handle));
    DO(cuMemAddressFree(one, bytes));
    DO(cuMemAddressFree(other, bytes));
    return hash(&seen, 4);
}

/* A mapping outlives its handle's release; a retained handle outlives the mapping. */
static uint64_t retained(unsigned seed) {
    CUdeviceptr address;
    CUmemGenericAllocationHandle handle, again;
    CUmemAllocationProp prop = device_memory(), said;
    size_t bytes = 4 * MIB;
    DO(cuMemCreate(&handle, bytes, &prop, 0));
    DO(cuMemAddressReserve(&address, bytes, 0, 0, 0));
    DO(cuMemMap(address, bytes, 0, handle, 0));
    DO(allow(address, bytes));
    DO(cuMemRelease(handle));
    DO(cuMemsetD32(address, seed, bytes / 4));
    DO(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(address + MIB)));
    DO(cuMemGetAllocationPropertiesFromHandle(&said, again));
    DO(cuCtxSynchronize());
    REQUIRE(said.type == CU_MEM_ALLOCATION_TYPE_PINNED);
    REQUIRE(said.location.type == CU_MEM_LOCATION_TYPE_DEVICE && said.location.id == 0);
    DO(cuMemUnmap(address, bytes));
    DO(cuMemMap(address, bytes, 0, again, 0));
    DO(allow(address, bytes));
    unsigned seen = 0;
    DO(cuMemcpyDtoH(&seen, address + bytes - 4, 4));
    REQUIRE(seen == seed);
    unsigned long long flags = 0;
    CUmemLocation location = prop.location;
    DO(cuMemGetAccess(&flags, &location, address));
    REQUIRE(flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    DO(cuMemUnmap(address, bytes));
    DO(cuMemRelease(again));
    DO(cuMemAddressFree(address, bytes));
    return hash(&seen, 4);
}

static uint64_t pointer_attributes(unsigned seed) {
    (void)seed;
    CUdeviceptr address;
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = device_memory();
    size_t bytes = 6 * MIB;
    DO(cuMemCreate(&handle, bytes, &prop, 0));
    DO(cuMemAddressReserve(&address, bytes, 0, 0, 0));
    DO(cuMemMap(address, bytes, 0, handle, 0));
    DO(allow(address, bytes));
    unsigned type = 0, managed = 1;
    int ordinal = -1;
    DO(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address + 5 * MIB));
    DO(cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address));
    DO(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address));
    REQUIRE(type == CU_MEMORYTYPE_DEVICE && (managed & 1) == 0 && ordinal == 0);
    DO(cuMemUnmap(address, bytes));
    DO(cuMemRelease(handle));
    DO(cuMemAddressFree(address, bytes));
    return type;
}

/* Misuse is refused, and nothing is lost by it. */
static uint64_t misuse(unsigned seed) {
    (void)seed;
    CUdeviceptr address;
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = device_memory();
    DO(cuMemCreate(&handle, 4 * MIB, &prop, 0));
    DO(cuMemAddressReserve(&address, 8 * MIB, 0, 0, 0));
    REQUIRE(cuMemMap(address, 2 * MIB, 2 * MIB, handle, 0) != CUDA_SUCCESS);
    REQUIRE(cuMemMap(address, 8 * MIB, 0, handle, 0) != CUDA_SUCCESS);
    DO(cuMemMap(address, 4 * MIB, 0, handle, 0));
    REQUIRE(cuMemMap(address, 4 * MIB, 0, handle, 0) != CUDA_SUCCESS);
    DO(cuMemUnmap(address, 4 * MIB));
    DO(cuMemRelease(handle));
    DO(cuMemAddressFree(address, 8 * MIB));
    return 1;
}

static uint64_t give_back(unsigned seed) {
    (void)seed;
    DO(cuMemRelease(held));
    return 1;
}

int main(int count, char **arguments) {
    unsigned seed = count > 2 ? (unsigned)strtoul(arguments[2], NULL, 10) : 1;
    CUcontext context;
    if (cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context)) {
        printf("FAIL start no device\n");
        return 1;
    }
    run("hold", hold, seed);
    run("granularity", granularity, seed);
    run("growing_segment", growing_segment, seed);
    run("aliased", aliased, seed);
    run("retained", retained, seed);
    run("pointer_attributes", pointer_attributes, seed);
    run("misuse", misuse, seed);
    run("give_back", give_back, seed);
    printf("TOTAL %u passed %u failed %u skipped 0\n", passed + failed, passed, failed);
    return failed != 0;
}
