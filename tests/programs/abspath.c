/* Way in: dlopen of an absolute path (EMUV_TEST_LIBCUDA), as a program does that searches for the driver
 * itself, and dlsym of what it needs. */
#define EMUV_PROGRAM_WITHOUT_LINKING
#include "program.h"

int main(void) {
    const char *path = getenv("EMUV_TEST_LIBCUDA");
    CHECK(path && *path == '/', "set EMUV_TEST_LIBCUDA to the absolute path of the driver library");
    void *library = dlopen(path, RTLD_LAZY | RTLD_GLOBAL);
    CHECK(library, "dlopen(%s): %s", path, dlerror());
    CUresult (*init)(unsigned) = dlsym(library, "cuInit");
    CUresult (*get)(CUdevice *, int) = dlsym(library, "cuDeviceGet");
    CUresult (*total)(size_t *, CUdevice) = dlsym(library, "cuDeviceTotalMem_v2");
    CUresult (*retain)(CUcontext *, CUdevice) = dlsym(library, "cuDevicePrimaryCtxRetain");
    CUresult (*set_current)(CUcontext) = dlsym(library, "cuCtxSetCurrent");
    CUresult (*info)(size_t *, size_t *) = dlsym(library, "cuMemGetInfo_v2");
    CUresult (*alloc)(CUdeviceptr *, size_t) = dlsym(library, "cuMemAlloc_v2");
    CHECK(init && get && total && retain && set_current && info && alloc, "%s lacks a function", path);
    check_library((void *)alloc);

    CUdevice device;
    CUcontext context;
    size_t device_total, free_now, info_total;
    OK(init(0));
    OK(get(&device, 0));
    OK(total(&device_total, device));
    OK(retain(&context, device));
    OK(set_current(context));
    OK(info(&free_now, &info_total));
    CHECK(info_total == device_total, "cuMemGetInfo says %zu, cuDeviceTotalMem %zu", info_total, device_total);
    printf("abspath: ok, total %zu\n", info_total);
    return 0;
}
