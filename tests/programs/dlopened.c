/* Way in: dlopen of the bare names, both of them, and dlsym. */
#define EMUV_PROGRAM_WITHOUT_LINKING
#include "program.h"

static void through(const char *name) {
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    CHECK(library, "dlopen(%s): %s", name, dlerror());
    CUresult (*init)(unsigned) = dlsym(library, "cuInit");
    CUresult (*get)(CUdevice *, int) = dlsym(library, "cuDeviceGet");
    CUresult (*retain)(CUcontext *, CUdevice) = dlsym(library, "cuDevicePrimaryCtxRetain");
    CUresult (*release)(CUdevice) = dlsym(library, "cuDevicePrimaryCtxRelease_v2");
    CUresult (*set_current)(CUcontext) = dlsym(library, "cuCtxSetCurrent");
    CUresult (*alloc)(CUdeviceptr *, size_t) = dlsym(library, "cuMemAlloc_v2");
    CUresult (*release_memory)(CUdeviceptr) = dlsym(library, "cuMemFree_v2");
    CUresult (*upload)(CUdeviceptr, const void *, size_t) = dlsym(library, "cuMemcpyHtoD_v2");
    CUresult (*download)(void *, CUdeviceptr, size_t) = dlsym(library, "cuMemcpyDtoH_v2");
    CHECK(init && get && retain && release && set_current && alloc && release_memory && upload && download,
          "%s lacks a function", name);
    check_library((void *)alloc);
    CHECK(!dlsym(library, "cuNoSuchFunction"), "a function that does not exist was found");

    CUdevice device;
    CUcontext context;
    CUdeviceptr block;
    OK(init(0));
    OK(get(&device, 0));
    OK(retain(&context, device));
    OK(set_current(context));
    OK(alloc(&block, 4 * MIB));
    static uint32_t sent[1024], received[1024];
    for (uint32_t i = 0; i < 1024; i++) sent[i] = mix_word(i);
    OK(upload(block + MIB, sent, sizeof sent));
    OK(download(received, block + MIB, sizeof received));
    CHECK(!memcmp(sent, received, sizeof sent), "what came back through %s differs", name);
    OK(release_memory(block));
    OK(release(device));
    CHECK(dlclose(library) == 0, "dlclose(%s): %s", name, dlerror());
}

int main(void) {
    through("libcuda.so.1");
    through("libcuda.so");
    through("libcuda.so.1");
    printf("dlopened: ok\n");
    return 0;
}
