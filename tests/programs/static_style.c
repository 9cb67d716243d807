/* Way in: as the statically linked CUDA runtime does it. It opens libcuda.so.1, takes the one symbol
 * cuGetProcAddress_v2 and asks that for everything else, by base name, version and kind of stream. */
#define EMUV_PROGRAM_WITHOUT_LINKING
#include "program.h"

typedef CUresult GetProcAddress(const char *, void **, int, uint64_t, int *);

static GetProcAddress *resolver;

static void *resolve(const char *name, int version, uint64_t flags) {
    void *function = NULL;
    int status = -1;
    EXPECT(resolver(name, &function, version, flags, &status), CUDA_SUCCESS);
    CHECK(status == PROC_FOUND, "status of %s at %d is %d", name, version, status);
    CHECK(function, "%s at %d is found but NULL", name, version);
    return function;
}

static void check_status(const char *name, int version, CUresult code, int status, const char *why) {
    void *function = (void *)1;
    int actual = -1;
    EXPECT(resolver(name, &function, version, PROC_DEFAULT, &actual), code);
    if (code != CUDA_SUCCESS) return;
    CHECK(actual == status, "%s: status of %s is %d", why, name, actual);
    CHECK(!function, "%s: %s has an address", why, name);
}

/* Everything that a runtime would call, resolved one way and used. */
static void use(int version, uint64_t flags) {
    CUresult (*init)(unsigned) = resolve("cuInit", version, flags);
    CUresult (*get)(CUdevice *, int) = resolve("cuDeviceGet", version, flags);
    CUresult (*retain)(CUcontext *, CUdevice) = resolve("cuDevicePrimaryCtxRetain", version, flags);
    CUresult (*release)(CUdevice) = resolve("cuDevicePrimaryCtxRelease", version, flags);
    CUresult (*set_current)(CUcontext) = resolve("cuCtxSetCurrent", version, flags);
    CUresult (*alloc)(CUdeviceptr *, size_t) = resolve("cuMemAlloc", version, flags);
    CUresult (*release_memory)(CUdeviceptr) = resolve("cuMemFree", version, flags);
    CUresult (*download)(void *, CUdeviceptr, size_t) = resolve("cuMemcpyDtoH", version, flags);
    CUresult (*set_words)(CUdeviceptr, unsigned, size_t) = resolve("cuMemsetD32", version, flags);
    CUresult (*load)(CUmodule *, const void *) = resolve("cuModuleLoadData", version, flags);
    CUresult (*function_of)(CUfunction *, CUmodule, const char *) = resolve("cuModuleGetFunction", version, flags);
    CUresult (*synchronize)(CUstream) = resolve("cuStreamSynchronize", version, flags);
    CUresult (*launch_kernel)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                              void **, void **) = resolve("cuLaunchKernel", version, flags);
    CUresult (*name_of)(CUresult, const char **) = resolve("cuGetErrorName", version, flags);
    check_library((void *)alloc);

    CUdevice device;
    CUcontext context;
    OK(init(0));
    OK(get(&device, 0));
    OK(retain(&context, device));
    OK(set_current(context));
    const char *name = NULL;
    OK(name_of(CUDA_ERROR_OUT_OF_MEMORY, &name));
    CHECK(name && !strcmp(name, "CUDA_ERROR_OUT_OF_MEMORY"), "error 2 is called %s", name ? name : "(null)");

    CUmodule module;
    CUfunction mix;
    char *text = kernel_text();
    OK(load(&module, text));
    OK(function_of(&mix, module, "emuv_mix"));
    CUdeviceptr block;
    uint64_t count = 3 * MIB / 4;
    uint32_t round = 5;
    OK(alloc(&block, count * 4));
    OK(set_words(block, 9, count));
    void *parameters[] = {&block, &count, &round};
    OK(launch_kernel(mix, 64, 1, 1, 128, 1, 1, 0, NULL, parameters, NULL));
    OK(synchronize(NULL));
    uint32_t *words = malloc(count * 4);
    OK(download(words, block, count * 4));
    uint32_t expected = 9u * 1664525u + 1013904223u + round;
    for (uint64_t i = 0; i < count; i++)
        CHECK(words[i] == expected, "word %" PRIu64 " is %u, not %u", i, words[i], expected);
    OK(release_memory(block));
    OK(release(device));
    free(words);
    free(text);
}

int main(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(library, "dlopen: %s", dlerror());
    resolver = (GetProcAddress *)dlsym(library, "cuGetProcAddress_v2");
    CHECK(resolver, "no cuGetProcAddress_v2");
    int (*version_of)(int *) = (int (*)(int *))dlsym(library, "cuDriverGetVersion");
    int driver = 0;
    CHECK(version_of && version_of(&driver) == 0, "no version");

    /* A runtime of CUDA 12 on any driver, one of CUDA 13 where the driver knows it. */
    static const uint64_t kinds[] = {PROC_DEFAULT, PROC_LEGACY_STREAM, PROC_PER_THREAD_STREAM};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        use(12000, kinds[i]);
        if (driver >= 13000) use(13000, kinds[i]);
    }

    /* The resolver resolves itself, to the newest form for that version, and that one works too. */
    GetProcAddress *again = (GetProcAddress *)resolve("cuGetProcAddress", 12000, PROC_DEFAULT);
    CHECK((void *)again == dlsym(library, "cuGetProcAddress_v2"), "cuGetProcAddress does not find itself");
    void *through_again = NULL;
    int status = -1;
    OK(again("cuMemAlloc", &through_again, 12000, PROC_DEFAULT, &status));
    CHECK(through_again == dlsym(library, "cuMemAlloc_v2"), "two ways to cuMemAlloc differ");
    CUresult (*older)(const char *, void **, int, uint64_t) = resolve("cuGetProcAddress", 11030, PROC_DEFAULT);
    CHECK((void *)older == dlsym(library, "cuGetProcAddress"), "the older form is not at 11030");
    OK(older("cuMemFree", &through_again, 12000, PROC_DEFAULT));
    CHECK(through_again == dlsym(library, "cuMemFree_v2"), "two ways to cuMemFree differ");

    /* Kind of stream: same base name, another entry where the driver has two, the same one where not. */
    static const char *const two[] = {"cuLaunchKernel", "cuMemcpyDtoH", "cuMemcpyDtoHAsync", "cuMemsetD32", "cuStreamSynchronize"};
    for (size_t i = 0; i < sizeof two / sizeof *two; i++) {
        void *legacy = resolve(two[i], 12000, PROC_LEGACY_STREAM);
        CHECK(legacy == resolve(two[i], 12000, PROC_DEFAULT), "%s: the default is not the legacy stream", two[i]);
        CHECK(legacy != resolve(two[i], 12000, PROC_PER_THREAD_STREAM), "%s: one entry for both streams", two[i]);
    }
    CHECK(resolve("cuMemAlloc", 12000, PROC_PER_THREAD_STREAM) == dlsym(library, "cuMemAlloc_v2"), "cuMemAlloc has one entry");

    check_status("cuNoSuchFunction", 12000, CUDA_SUCCESS, PROC_NAME_NOT_FOUND, "unknown name");
    check_status("cuMemAlloc", 1000, CUDA_SUCCESS, PROC_VERSION_TOO_OLD, "version before the function");
    check_status("cuMemAlloc", 99000, CUDA_ERROR_INVALID_VALUE, -1, "version after the driver");
    /* The status pointer may be NULL. */
    void *function = NULL;
    OK(resolver("cuMemAlloc", &function, 12000, PROC_DEFAULT, NULL));
    CHECK(function, "no address without a status");

    printf("static_style: ok, driver %d\n", driver);
    return 0;
}
