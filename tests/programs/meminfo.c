/* Every way to ask how much memory there is gives the same answer, in the driver and in NVML. */
#include "program.h"

struct nvml_memory { unsigned long long total, free, used; };
struct nvml_memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };

int main(void) {
    start_gpu();
    (void)settled_free_bytes();
    size_t free_now, info_total, device_total;
    OK(cuMemGetInfo_v2(&free_now, &info_total));
    OK(cuDeviceTotalMem_v2(&device_total, gpu.device));

    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    CHECK(nvml, "dlopen: %s", dlerror());
    int (*init)(void) = (int (*)(void))dlsym(nvml, "nvmlInit_v2");
    int (*by_uuid)(const char *, void **) = (int (*)(const char *, void **))dlsym(nvml, "nvmlDeviceGetHandleByUUID");
    int (*memory)(void *, struct nvml_memory *) =
        (int (*)(void *, struct nvml_memory *))dlsym(nvml, "nvmlDeviceGetMemoryInfo");
    int (*memory_v2)(void *, struct nvml_memory_v2 *) =
        (int (*)(void *, struct nvml_memory_v2 *))dlsym(nvml, "nvmlDeviceGetMemoryInfo_v2");
    CHECK(init && by_uuid && memory && memory_v2, "NVML lacks a function");
    OK(init());

    /* The CUDA device 0 is looked up by its UUID: NVML counts without regard to CUDA_VISIBLE_DEVICES. */
    CUuuid uuid;
    char text[64] = "GPU-";
    OK(cuDeviceGetUuid_v2(&uuid, gpu.device));
    size_t length = 4;
    for (int i = 0; i < 16; i++) {
        const char *dash = i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "";
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%02x", dash, uuid.bytes[i]);
    }
    void *device = NULL;
    OK(by_uuid(text, &device));
    struct nvml_memory v1;
    struct nvml_memory_v2 v2 = {.version = (unsigned)sizeof v2 | 2u << 24};
    OK(memory(device, &v1));
    OK(memory_v2(device, &v2));

    printf("{\"total\": %zu, \"free\": %zu, \"device_total\": %zu, \"nvml_total\": %llu, \"nvml_free\": %llu, "
           "\"nvml_v2_total\": %llu, \"nvml_v2_free\": %llu, \"nvml_v2_used\": %llu}\n",
           info_total, free_now, device_total, v1.total, v1.free, v2.total, v2.free, v2.used);
    CHECK(info_total == device_total, "cuMemGetInfo and cuDeviceTotalMem differ");
    CHECK(v1.total == v2.total, "NVML's two versions differ");
    CHECK(v1.free <= v1.total && v1.used <= v1.total, "NVML's free or used is more than its total");
    const char *expected = getenv("EMUV_TEST_EXPECT");
    if (expected && !strcmp(expected, "emuv"))
        CHECK(v1.total == info_total, "NVML and the driver differ");
    else /* A plain driver keeps a little for itself. */
        CHECK(v1.total >= info_total, "NVML says less than the driver");
    printf("meminfo: ok\n");
    return 0;
}
