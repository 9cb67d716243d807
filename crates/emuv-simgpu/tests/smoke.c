/* Uses the simulated driver as a program does: loads it, looks up what it needs, computes, fails, recovers. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef unsigned long long ptr;
static void *library;

static void *find(const char *name) {
    void *address = dlsym(library, name);
    if (!address) { fprintf(stderr, "no symbol %s\n", name); exit(2); }
    return address;
}
#define CALL(name, ...) ((int (*)())find(name))(__VA_ARGS__)
#define EXPECT(want, got) do { int got_ = (got); if (got_ != (want)) { \
    fprintf(stderr, "line %d: %s gave %d, not %d\n", __LINE__, #got, got_, (want)); exit(1); } } while (0)

static uint32_t mix(uint32_t x) {
    x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; return x ^ x >> 16;
}

int main(int argc, char **argv) {
    library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!library) { fprintf(stderr, "%s\n", dlerror()); return 2; }
    EXPECT(3, CALL("cuCtxSynchronize"));
    EXPECT(0, CALL("cuInit", 0));
    int count = 0, version = 0;
    EXPECT(0, CALL("cuDeviceGetCount", &count));
    EXPECT(2, count);
    EXPECT(0, CALL("cuDriverGetVersion", &version));
    EXPECT(13000, version);
    ptr a = 0, b = 0;
    EXPECT(201, CALL("cuMemAlloc_v2", &a, (size_t)512));
    void *context = NULL;
    EXPECT(0, CALL("cuDevicePrimaryCtxRetain", &context, 0));
    EXPECT(0, CALL("cuCtxSetCurrent", context));
    size_t free_bytes = 0, total_bytes = 0;
    EXPECT(0, CALL("cuMemGetInfo_v2", &free_bytes, &total_bytes));
    EXPECT(1, free_bytes == 256u << 20 && total_bytes == 256u << 20);

    /* Allocation: the driver's answers to odd questions. */
    EXPECT(1, CALL("cuMemAlloc_v2", &a, (size_t)0));
    EXPECT(1, CALL("cuMemAlloc_v2", NULL, (size_t)512));
    EXPECT(2, CALL("cuMemAlloc_v2", &a, (size_t)257 << 20));
    EXPECT(0, CALL("cuMemFree_v2", (ptr)0));
    EXPECT(0, CALL("cuMemAlloc_v2", &a, (size_t)4 << 20));
    EXPECT(1, CALL("cuMemFree_v2", a + 8));
    size_t size = 0;
    EXPECT(0, CALL("cuMemGetAddressRange_v2", &b, &size, a + 12345));
    EXPECT(1, b == a && size == 4u << 20);
    EXPECT(500, CALL("cuMemGetAddressRange_v2", NULL, NULL, (ptr)4096));
    uint32_t type = 0;
    EXPECT(0, CALL("cuPointerGetAttribute", &type, 2, a));
    EXPECT(2, (int)type);
    EXPECT(1, CALL("cuPointerGetAttribute", &type, 2, (ptr)4096));

    /* Entry points by name, as the runtime finds them. */
    void *entry = NULL;
    int status = -1;
    EXPECT(0, CALL("cuGetProcAddress_v2", "cuMemAlloc", &entry, 12000, (uint64_t)0, &status));
    EXPECT(1, entry == find("cuMemAlloc_v2") && status == 0);
    EXPECT(0, CALL("cuGetProcAddress_v2", "cuNoSuchCall", &entry, 12000, (uint64_t)0, &status));
    EXPECT(1, entry == NULL && status == 1);
    EXPECT(0, CALL("cuGetProcAddress_v2", "cuMemAllocAsync", &entry, 11000, (uint64_t)0, &status));
    EXPECT(1, entry == NULL && status == 2);
    EXPECT(1, CALL("cuGetProcAddress_v2", "cuMemAlloc", &entry, 99000, (uint64_t)0, &status));

    /* A kernel, by arguments and by buffer. */
    void *module = NULL, *fill = NULL, *stream = NULL;
    EXPECT(0, CALL("cuModuleLoadData", &module, ".version 8.0\n.visible .entry emuv_fill() { ret; }"));
    EXPECT(500, CALL("cuModuleGetFunction", &fill, module, "emuv_mix"));
    EXPECT(0, CALL("cuModuleGetFunction", &fill, module, "emuv_fill"));
    size_t offset = 0, width = 0;
    EXPECT(0, CALL("cuFuncGetParamInfo", fill, (size_t)2, &offset, &width));
    EXPECT(1, offset == 16 && width == 4);
    EXPECT(1, CALL("cuFuncGetParamInfo", fill, (size_t)3, &offset, &width));
    EXPECT(0, CALL("cuStreamCreate", &stream, 1));
    uint64_t n = 1 << 20;
    uint32_t seed = 77;
    void *arguments[] = {&a, &n, &seed};
    EXPECT(0, CALL("cuLaunchKernel", fill, 64, 1, 1, 256, 1, 1, 0, stream, arguments, NULL));
    EXPECT(0, CALL("cuStreamSynchronize", stream));
    uint32_t *back = malloc(4 << 20);
    EXPECT(0, CALL("cuMemcpyDtoH_v2", back, a, (size_t)4 << 20));
    for (uint32_t i = 0; i < n; i++) if (back[i] != mix(i + 77)) { fprintf(stderr, "word %u differs\n", i); return 1; }
    struct { ptr a; uint64_t n; uint32_t seed; } buffer = {a, 16, 5};
    size_t buffer_bytes = sizeof buffer;
    void *extra[] = {(void *)1, &buffer, (void *)2, &buffer_bytes, NULL};
    EXPECT(0, CALL("cuLaunchKernel", fill, 1, 1, 1, 32, 1, 1, 0, stream, NULL, extra));
    EXPECT(0, CALL("cuMemcpyDtoHAsync_v2", back, a, (size_t)64, stream));
    EXPECT(1, back[3] == mix(8));

    /* NVML sees the same memory. */
    EXPECT(0, CALL("nvmlInit_v2"));
    void *card = NULL;
    EXPECT(0, CALL("nvmlDeviceGetHandleByIndex_v2", 0, &card));
    struct { unsigned long long total, free, used; } memory;
    EXPECT(0, CALL("nvmlDeviceGetMemoryInfo", card, &memory));
    EXPECT(1, memory.total == 256u << 20 && memory.used == 4u << 20);
    EXPECT(0, CALL("nvmlShutdown"));

    /* What nobody implements, and what is made to fail. */
    EXPECT(801, CALL("cuTexRefCreate", &entry));
    EXPECT(0, CALL("cuEventCreate", &entry, 0));
    EXPECT(999, CALL("cuEventCreate", &entry, 0));
    EXPECT(0, CALL("cuEventCreate", &entry, 0));

    /* A forked child cannot use the GPU. */
    pid_t child = fork();
    if (child == 0) _exit(CALL("cuCtxSynchronize") == 3 ? 0 : 1);
    int outcome = -1;
    waitpid(child, &outcome, 0);
    EXPECT(0, outcome);

    /* A bad address breaks the context until it is reset. */
    ptr bad = 4096;
    arguments[0] = &bad;
    EXPECT(0, CALL("cuLaunchKernel", fill, 1, 1, 1, 32, 1, 1, 0, stream, arguments, NULL));
    EXPECT(700, CALL("cuStreamSynchronize", stream));
    EXPECT(700, CALL("cuMemAlloc_v2", &b, (size_t)512));
    EXPECT(0, CALL("cuDevicePrimaryCtxReset_v2", 0));
    EXPECT(0, CALL("cuDevicePrimaryCtxRetain", &context, 0));
    EXPECT(0, CALL("cuMemAlloc_v2", &b, (size_t)512));
    /* Ends with work in flight: that must not keep the process. */
    uint32_t word = 1;
    EXPECT(0, CALL("cuMemcpyHtoD_v2", b, &word, (size_t)4));
    EXPECT(0, CALL("cuStreamWaitValue32_v2", NULL, b, 2, 1));
    puts("ok");
    return 0;
}
