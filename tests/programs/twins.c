/* Two devices run the same code, as the halves of a model on two GPUs do: kernels of one library, known by the same handles
 * in both contexts, on memory of their own and now and then on memory of both, with peer access. Every value is a small
 * whole number, kept in step on the host.
 * Arguments: [buffers per device, default 8] [MiB of each, default 16] [rounds, default 8] */
#include "program.h"

enum { DEVICES = 2 };

static CUcontext context[DEVICES];
static CUstream stream[DEVICES];
static CUevent event[DEVICES];
static CUkernel axpy;
static size_t buffers, bytes;
static CUdeviceptr *buffer[DEVICES];
static float *expected[DEVICES];

static void use(int device) { OK(cuCtxSetCurrent(context[device])); }

/* What comes next on the stream of `device` comes after what there is on the other's. */
static void after_the_other(int device) {
    use(1 - device);
    OK(cuEventRecord(event[1 - device], stream[1 - device]));
    use(device);
    OK(cuStreamWaitEvent(stream[device], event[1 - device], 0));
}

/* By `device`: one of its buffers takes on another one's values, or their opposites, so that all stay small. */
static void add(int device, size_t to, int of, size_t from) {
    float *y = &expected[device][to], x = expected[of][from], factor = (*y < 0) == (x < 0) ? -1 : 1;
    uint64_t count = bytes / 4;
    void *parameters[] = {&buffer[device][to], &buffer[of][from], &factor, &count};
    use(device);
    launch((CUfunction)axpy, count, stream[device], parameters);
    *y += factor * x;
}

int main(int argc, char **argv) {
    CUlibrary library;
    int can[DEVICES];
    buffers = argument(argc, argv, 1, 8);
    bytes = argument(argc, argv, 2, 16) * MIB;
    size_t rounds = argument(argc, argv, 3, 8);
    CHECK(buffers > 1, "too few buffers");
    check_library((void *)cuMemAlloc_v2);
    OK(cuInit(0));
    char *text = kernel_text();
    OK(cuLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetKernel(&axpy, library, "emuv_axpy"));
    free(text);
    for (int d = 0; d < DEVICES; d++) {
        OK(cuDevicePrimaryCtxRetain(&context[d], d));
        OK(cuDeviceCanAccessPeer(&can[d], d, 1 - d));
        use(d);
        OK(cuStreamCreate(&stream[d], 1));
        OK(cuEventCreate(&event[d], EVENT_DISABLE_TIMING));
        buffer[d] = calloc(buffers, sizeof *buffer[d]);
        expected[d] = calloc(buffers, sizeof *expected[d]);
        CHECK(buffer[d] && expected[d], "no memory");
        for (size_t b = 0; b < buffers; b++) {
            union {
                float value;
                unsigned bits;
            } first = {.value = (float)(b + 1 + 100 * (size_t)d)};
            OK(cuMemAlloc_v2(&buffer[d][b], bytes));
            OK(cuMemsetD32Async(buffer[d][b], first.bits, bytes / 4, stream[d]));
            expected[d][b] = first.value;
        }
    }
    for (int d = 0; d < DEVICES && can[0] && can[1]; d++) {
        use(d);
        OK(cuCtxEnablePeerAccess(context[1 - d], 0));
    }
    for (size_t round = 0; round < rounds; round++) {
        for (size_t b = 0; b < buffers; b++)
            for (int d = 0; d < DEVICES; d++) add(d, b, d, (b + 1) % buffers);
        if (!can[0] || !can[1]) continue;
        for (size_t b = 0; b < buffers; b++) {
            int d = (int)(b % DEVICES);
            after_the_other(d);
            add(d, b, 1 - d, (b + round) % buffers);
            after_the_other(1 - d);
        }
    }
    float *words = malloc(bytes);
    CHECK(words, "no memory");
    for (int d = 0; d < DEVICES; d++) {
        use(d);
        OK(cuCtxSynchronize());
    }
    for (int d = 0; d < DEVICES; d++) {
        use(d);
        for (size_t b = 0; b < buffers; b++) {
            OK(cuMemcpyDtoH_v2(words, buffer[d][b], bytes));
            for (size_t i = 0; i < bytes / 4; i++)
                CHECK(words[i] == expected[d][b], "device %d, buffer %zu, word %zu: %g, not %g", d, b, i, words[i], expected[d][b]);
            OK(cuMemFree_v2(buffer[d][b]));
        }
        OK(cuStreamDestroy_v2(stream[d]));
        OK(cuEventDestroy_v2(event[d]));
    }
    free(words);
    printf("twins: ok, %zu x %zu MiB on each device, %zu rounds, peer access %s\n", buffers, bytes / MIB, rounds,
           can[0] && can[1] ? "used" : "not there");
    return 0;
}
