/* Which devices a process sees, and what is accounted on each, by UUID: on device i, (i + 1) times as much memory is
 * allocated; CUDA and NVML must say the same about it. Prints one line of JSON; no device at all is an answer too.
 * Arguments: [MiB for the first device, default 48] */
#include "program.h"

/* The part of NVML that is asked here. */
typedef struct { unsigned long long total, free, used; } nvml_memory;
static int (*nvml_init)(void);
static int (*nvml_by_uuid)(const char *uuid, void **device);
static int (*nvml_memory_info)(void *device, nvml_memory *memory);

static void open_nvml(void) {
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!library) return;
    *(void **)&nvml_init = dlsym(library, "nvmlInit_v2");
    *(void **)&nvml_by_uuid = dlsym(library, "nvmlDeviceGetHandleByUUID");
    *(void **)&nvml_memory_info = dlsym(library, "nvmlDeviceGetMemoryInfo");
    if (!nvml_init || nvml_init()) nvml_by_uuid = NULL;
}

int main(int argc, char **argv) {
    size_t unit = argument(argc, argv, 1, 48) * MIB;
    int count = 0, emuv = getenv("EMUV_TEST_EXPECT") && !strcmp(getenv("EMUV_TEST_EXPECT"), "emuv");
    check_library((void *)cuMemAlloc_v2);
    CUresult started = cuInit(0);
    if (started == CUDA_SUCCESS) OK(cuDeviceGetCount(&count));
    open_nvml();
    CUdeviceptr *memory = calloc((size_t)count + 1, sizeof *memory);
    CUcontext *context = calloc((size_t)count + 1, sizeof *context);
    CHECK(memory && context, "no memory");
    printf("{\"error\": %d, \"uuids\": [", started == CUDA_SUCCESS ? 0 : started);
    for (int i = 0; i < count; i++) {
        CUdevice device;
        CUuuid id;
        char text[64];
        OK(cuDeviceGet(&device, i));
        OK(cuDeviceGetUuid_v2(&id, device));
        int at = snprintf(text, sizeof text, "GPU-");
        for (int b = 0; b < 16; b++)
            at += snprintf(text + at, sizeof text - (size_t)at, "%s%02x", b == 4 || b == 6 || b == 8 || b == 10 ? "-" : "", id.bytes[b]);
        size_t total, of_device, available, after, bytes = unit * (size_t)(i + 1);
        OK(cuDevicePrimaryCtxRetain(&context[i], device));
        OK(cuCtxSetCurrent(context[i]));
        OK(cuDeviceTotalMem_v2(&of_device, device));
        OK(cuMemGetInfo_v2(&available, &total));
        CHECK(!emuv || of_device == total, "device %d: totals %zu and %zu", i, of_device, total);
        OK(cuMemAlloc_v2(&memory[i], bytes));
        OK(cuMemsetD8_v2(memory[i], (unsigned char)i, bytes));
        OK(cuCtxSynchronize());
        OK(cuMemGetInfo_v2(&after, &total));
        /* Without emuV the card may have other users, who come and go. */
        CHECK(!emuv || (available - after >= bytes && available >= after), "device %d: %zu free, then %zu", i, available, after);
        void *card;
        nvml_memory seen = {0, 0, 0};
        if (nvml_by_uuid && !nvml_by_uuid(text, &card)) {
            CHECK(!nvml_memory_info(card, &seen), "NVML does not tell about %s", text);
            CHECK(seen.used >= bytes, "%s: NVML knows of %llu bytes, %zu are in use", text, seen.used, bytes);
            CHECK(!emuv || seen.total == total, "%s: NVML's total is %llu, CUDA's %zu", text, seen.total, total);
        }
        printf("%s\"%s\"", i ? ", " : "", text);
        fflush(stdout);
    }
    printf("]}\n");
    for (int i = 0; i < count; i++) {
        OK(cuCtxSetCurrent(context[i]));
        OK(cuMemFree_v2(memory[i]));
    }
    return 0;
}
