/* Does what it is told, one line of standard input at a time, and answers each with one line: for tests of several
 * programs at once that depend on no timing.
 *   alloc MIB | async MIB   memory, filled on the GPU       -> ok NUMBER, or oom
 *   huge                    as much as no GPU has            -> oom
 *   array MIB               memory that emuV only accounts   -> ok NUMBER, or oom
 *   free NUMBER                                             -> ok
 *   verify                  every word of what is held       -> ok
 *   device NUMBER           the GPU of what follows          -> how many there are
 *   uuid                    the GPU's, by CUDA and by NVML   -> UUID UUID
 *   info                    driver: free and total, in MiB   -> FREE TOTAL
 *   nvml                    GPUs, total and free MiB, processes, and MiB of this one -> ...
 *   fork                    a child that does nothing        -> its process number
 * With arguments: those commands, then the end. */
#include "program.h"

#include <unistd.h>

typedef void *CUarray;
typedef struct { size_t width, height; unsigned format, channels; } array_descriptor;
enum { FLOATS = 0x20 };
CUresult cuArrayCreate_v2(CUarray *array, const array_descriptor *what);
CUresult cuArrayDestroy(CUarray array);

enum { MOST = 4096, MOST_GPUS = 16 };

/* What was loaded on each GPU; the one in use is in `gpu`. */
static __typeof__(gpu) gpus[MOST_GPUS];
static unsigned current;

static void use(unsigned device) {
    CHECK(device < MOST_GPUS, "no such device");
    if (device == current) return;
    gpus[current] = gpu;
    gpu = gpus[current = device];
    if (gpu.context) {
        OK(cuCtxSetCurrent(gpu.context));
        return;
    }
    OK(cuDeviceGet(&gpu.device, (int)device));
    OK(cuDevicePrimaryCtxRetain(&gpu.context, gpu.device));
    OK(cuCtxSetCurrent(gpu.context));
    load_kernels();
}

static struct held {
    CUdeviceptr at;
    CUarray array;
    uint64_t count;
    char kind;
    unsigned device;
} held[MOST];
static unsigned used;

struct nvml_memory { unsigned long long total, free, used; };
struct nvml_process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

static void answer(CUresult result) {
    if (result == CUDA_SUCCESS) printf("ok %u\n", used++);
    else if (result == CUDA_ERROR_OUT_OF_MEMORY) printf("oom\n");
    else CHECK(0, "refused with %d", result);
}

static void take(const char *how, size_t mib) {
    struct held *one = &held[used];
    CHECK(used < MOST, "too many");
    *one = (struct held){.count = mib * MIB / 4, .kind = how[1], .device = current};
    CUresult result;
    if (!strcmp(how, "array")) {
        array_descriptor what = {.width = 1024, .height = mib * MIB / 4096, .format = FLOATS, .channels = 1};
        result = cuArrayCreate_v2(&one->array, &what);
    } else {
        result = how[1] == 's' ? cuMemAllocAsync(&one->at, mib * MIB, NULL) : cuMemAlloc_v2(&one->at, mib * MIB);
        if (result == CUDA_SUCCESS) run_fill(one->at, one->count, used);
    }
    answer(result);
}

static void give(unsigned number) {
    struct held *one = &held[number];
    CHECK(number < used && one->count, "nothing is held as %u", number);
    unsigned before = current;
    use(one->device);
    if (one->kind == 'r') OK(cuArrayDestroy(one->array));
    else if (one->kind == 's') {
        OK(cuMemFreeAsync(one->at, NULL));
        OK(cuCtxSynchronize());
    } else OK(cuMemFree_v2(one->at));
    one->count = 0;
    use(before);
    printf("ok\n");
}

static void verify(void) {
    unsigned before = current;
    for (unsigned i = 0; i < used; i++) {
        use(held[i].device);
        if (held[i].count && held[i].kind != 'r') check_contents(held[i].at, held[i].count, filled(i), i);
    }
    use(before);
    printf("ok\n");
}

static void ask_nvml(void) {
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    CHECK(nvml, "dlopen: %s", dlerror());
    int (*init)(void) = (int (*)(void))dlsym(nvml, "nvmlInit_v2");
    int (*count)(unsigned *) = (int (*)(unsigned *))dlsym(nvml, "nvmlDeviceGetCount_v2");
    int (*by_index)(unsigned, void **) = (int (*)(unsigned, void **))dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2");
    int (*memory)(void *, struct nvml_memory *) =
        (int (*)(void *, struct nvml_memory *))dlsym(nvml, "nvmlDeviceGetMemoryInfo");
    int (*processes)(void *, unsigned *, struct nvml_process *) =
        (int (*)(void *, unsigned *, struct nvml_process *))dlsym(nvml, "nvmlDeviceGetComputeRunningProcesses_v3");
    unsigned all = 0, number = 64;
    void *device = NULL;
    struct nvml_memory bytes;
    struct nvml_process list[64];
    OK(init());
    OK(count(&all));
    OK(by_index(current, &device));
    OK(memory(device, &bytes));
    OK(processes(device, &number, list));
    unsigned long long own = 0;
    for (unsigned i = 0; i < number; i++)
        if (list[i].pid == (unsigned)getpid()) own += list[i].used;
    printf("%u %llu %llu %u %llu\n", all, bytes.total / MIB, bytes.free / MIB, number, own / MIB);
}

static void ask_uuid(void) {
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    CHECK(nvml, "dlopen: %s", dlerror());
    int (*init)(void) = (int (*)(void))dlsym(nvml, "nvmlInit_v2");
    int (*by_index)(unsigned, void **) = (int (*)(unsigned, void **))dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2");
    int (*uuid)(void *, char *, unsigned) = (int (*)(void *, char *, unsigned))dlsym(nvml, "nvmlDeviceGetUUID");
    CUuuid bytes;
    char text[96];
    void *device = NULL;
    OK(cuDeviceGetUuid_v2(&bytes, gpu.device));
    printf("GPU-");
    for (int i = 0; i < 16; i++) printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", (unsigned char)bytes.bytes[i]);
    OK(init());
    OK(by_index(current, &device));
    OK(uuid(device, text, sizeof text));
    printf(" %s\n", text);
}

static void obey(char *line) {
    char what[16] = "";
    size_t number = 0;
    sscanf(line, "%15s %zu", what, &number);
    if (!strcmp(what, "alloc") || !strcmp(what, "async") || !strcmp(what, "array")) take(what, number);
    else if (!strcmp(what, "huge")) {
        CUdeviceptr at;
        EXPECT(cuMemAlloc_v2(&at, SIZE_MAX), CUDA_ERROR_OUT_OF_MEMORY);
        EXPECT(cuMemAllocAsync(&at, SIZE_MAX / 2, NULL), CUDA_ERROR_OUT_OF_MEMORY);
        printf("oom\n");
    } else if (!strcmp(what, "free")) give((unsigned)number);
    else if (!strcmp(what, "verify")) verify();
    else if (!strcmp(what, "nvml")) ask_nvml();
    else if (!strcmp(what, "uuid")) ask_uuid();
    else if (!strcmp(what, "device")) {
        int all = 0;
        use((unsigned)number);
        OK(cuDeviceGetCount(&all));
        printf("%d\n", all);
    } else if (!strcmp(what, "info")) {
        size_t available, total;
        OK(cuMemGetInfo_v2(&available, &total));
        printf("%zu %zu\n", available / MIB, total / MIB);
    } else if (!strcmp(what, "fork")) {
        /* The child is past what happens in a fork when it says so. */
        int said[2];
        CHECK(pipe(said) == 0, "no pipe");
        pid_t child = fork();
        if (child == 0) {
            CHECK(write(said[1], "", 1) == 1, "the child cannot speak");
            for (;;) pause();
        }
        char word;
        CHECK(read(said[0], &word, 1) == 1, "the child says nothing");
        close(said[0]);
        close(said[1]);
        printf("%d\n", (int)child);
    } else CHECK(0, "no such command: %s", line);
    fflush(stdout);
}

int main(int argc, char **argv) {
    start_gpu();
    if (argc > 1) {
        for (int i = 1; i < argc; i++) obey(argv[i]);
        return 0;
    }
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    char line[128];
    while (fgets(line, sizeof line, stdin)) obey(line);
    return 0;
}
