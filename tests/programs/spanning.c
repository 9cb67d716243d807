/* Copies and memsets over ranges that start and end anywhere, across chunk and tier boundaries, against
 * a copy of both buffers in host memory. The buffers start as zeros by memset.
 * Arguments: [MiB of each of the two buffers, default 150] [seed] [operations, default 120]
 *            [MiB of ballast taken first, default 0] */
#include "program.h"

static size_t buffer_bytes;
static uint64_t random_state;

static size_t below(size_t limit) { return next_random(&random_state) % limit; }

/* A range, often short, sometimes most of the buffer; aligned to `unit`. */
static size_t pick(size_t *at, size_t unit) {
    size_t longest = below(4) == 0 ? buffer_bytes : 6 * MIB;
    if (longest > buffer_bytes) longest = buffer_bytes;
    size_t bytes = (1 + below(longest / unit - 1)) * unit;
    *at = below((buffer_bytes - bytes) / unit + 1) * unit;
    return bytes;
}

static void same(const unsigned char *expected, const unsigned char *actual, size_t bytes, const char *what) {
    if (!memcmp(expected, actual, bytes)) return;
    for (size_t i = 0; i < bytes; i++)
        CHECK(expected[i] == actual[i], "%s: byte %zu of %zu is %02x, not %02x", what, i, bytes, actual[i], expected[i]);
}

static void plane(CUdeviceptr *device, unsigned char **mirror, unsigned char *scratch) {
    unsigned s = (unsigned)below(2), d = (unsigned)below(3);
    size_t source_pitch = 4096 + below(3 * MIB), target_pitch = 4096 + below(3 * MIB);
    /* The plain call may refuse pitches that cuMemAllocPitch would not give; the other takes any. */
    int aligned = below(2) == 0;
    if (aligned) source_pitch = source_pitch / 512 * 512, target_pitch = target_pitch / 512 * 512;
    size_t smaller = source_pitch < target_pitch ? source_pitch : target_pitch;
    size_t larger = source_pitch < target_pitch ? target_pitch : source_pitch;
    size_t x = below(64), width = 1 + below(smaller - 64);
    size_t rows = buffer_bytes / larger;
    if (rows > 8) rows = 8;
    CHECK(rows > 0, "a pitch of %zu does not fit", larger);
    CUDA_MEMCPY2D copy = {.srcXInBytes = x, .srcMemoryType = MEMORY_DEVICE, .srcDevice = device[s],
                          .srcPitch = source_pitch, .dstPitch = target_pitch, .WidthInBytes = width, .Height = rows};
    unsigned char *target;
    if (d == 2) { /* to the host */
        copy.dstMemoryType = MEMORY_HOST;
        copy.dstHost = target = scratch;
    } else {
        if (d == s) d = 1 - s;
        copy.dstMemoryType = MEMORY_DEVICE;
        copy.dstDevice = device[d];
        target = mirror[d];
    }
    OK(aligned ? cuMemcpy2D_v2(&copy) : cuMemcpy2DUnaligned_v2(&copy));
    for (size_t row = 0; row < rows; row++) {
        const unsigned char *from = mirror[s] + row * source_pitch + x;
        unsigned char *to = target + row * target_pitch;
        if (d == 2)
            same(from, to, width, "2D copy to the host");
        else
            memcpy(to, from, width);
    }
}

int main(int argc, char **argv) {
    buffer_bytes = argument(argc, argv, 1, 150) * MIB;
    random_state = seed_argument(argc, argv, 2);
    size_t operations = argument(argc, argv, 3, 120);
    size_t ballast_bytes = argument(argc, argv, 4, 0) * MIB;
    start_gpu();
    CUdeviceptr ballast = 0, device[2];
    if (ballast_bytes) OK(cuMemAlloc_v2(&ballast, ballast_bytes));
    unsigned char *mirror[2], *scratch = malloc(buffer_bytes);
    CUstream stream;
    OK(cuStreamCreate(&stream, 1));
    for (int i = 0; i < 2; i++) {
        OK(cuMemAlloc_v2(&device[i], buffer_bytes));
        OK(cuMemsetD8_v2(device[i], 0, buffer_bytes));
        mirror[i] = calloc(1, buffer_bytes);
        CHECK(mirror[i] && scratch, "no memory");
    }
    /* A memset by the synchronous call may still be under way where a non-blocking stream starts. */
    OK(cuCtxSynchronize());

    for (size_t operation = 0; operation < operations; operation++) {
        unsigned i = (unsigned)below(2);
        int asynchronous = below(2) != 0;
        size_t at, to, bytes;
        switch (below(7)) {
        case 0: /* upload */
            bytes = pick(&at, 1);
            for (size_t k = 0; k < bytes; k += 1 + below(97)) mirror[i][at + k] = (unsigned char)next_random(&random_state);
            if (asynchronous)
                OK(cuMemcpyHtoDAsync_v2(device[i] + at, mirror[i] + at, bytes, stream));
            else
                OK(cuMemcpyHtoD_v2(device[i] + at, mirror[i] + at, bytes));
            break;
        case 1: /* download */
            bytes = pick(&at, 1);
            if (asynchronous)
                OK(cuMemcpyDtoHAsync_v2(scratch, device[i] + at, bytes, stream));
            else
                OK(cuMemcpyDtoH_v2(scratch, device[i] + at, bytes));
            OK(cuStreamSynchronize(stream));
            same(mirror[i] + at, scratch, bytes, "download");
            break;
        case 2: /* from one buffer to the other */
            bytes = pick(&at, 1);
            to = below(buffer_bytes - bytes + 1);
            if (asynchronous)
                OK(cuMemcpyDtoDAsync_v2(device[1 - i] + to, device[i] + at, bytes, stream));
            else
                OK(cuMemcpyDtoD_v2(device[1 - i] + to, device[i] + at, bytes));
            memcpy(mirror[1 - i] + to, mirror[i] + at, bytes);
            break;
        case 3: {
            unsigned char value = (unsigned char)next_random(&random_state);
            bytes = pick(&at, 1);
            OK(cuMemsetD8_v2(device[i] + at, value, bytes));
            memset(mirror[i] + at, value, bytes);
            break;
        }
        case 4: {
            unsigned short value = (unsigned short)next_random(&random_state);
            bytes = pick(&at, 2);
            OK(cuMemsetD16_v2(device[i] + at, value, bytes / 2));
            for (size_t k = 0; k < bytes; k += 2) memcpy(mirror[i] + at + k, &value, 2);
            break;
        }
        case 5: {
            unsigned value = (unsigned)next_random(&random_state);
            bytes = pick(&at, 4);
            OK(cuMemsetD32_v2(device[i] + at, value, bytes / 4));
            for (size_t k = 0; k < bytes; k += 4) memcpy(mirror[i] + at + k, &value, 4);
            break;
        }
        default:
            plane(device, mirror, scratch);
        }
        OK(cuCtxSynchronize());
    }
    for (int i = 0; i < 2; i++) {
        OK(cuMemcpyDtoH_v2(scratch, device[i], buffer_bytes));
        same(mirror[i], scratch, buffer_bytes, "the whole buffer at the end");
        OK(cuMemFree_v2(device[i]));
        free(mirror[i]);
    }
    OK(cuMemFree_v2(ballast));
    OK(cuStreamDestroy_v2(stream));
    free(scratch);
    printf("spanning: ok, %zu operations on 2 x %zu MiB\n", operations, buffer_bytes / MIB);
    return 0;
}
