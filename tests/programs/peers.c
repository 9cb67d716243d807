/* Two devices in one process: copies between them with and without peer access, kernels of one that work on memory of
 * the other (named, or through a table of pointers in either device's memory), memory that is allocated after access was
 * enabled, pools that are opened to a peer. Everything is ordered by events alone.
 * Arguments: [buffers per device, default 10] [MiB of each, default 24] [rounds, default 60] [seed] */
#include "program.h"

enum { DEVICES = 2, TABLE = 4 };

static __typeof__(gpu) card[DEVICES];
static CUstream stream[DEVICES];
static CUevent event[DEVICES];
static size_t buffers, bytes, before[DEVICES];
static CUdeviceptr *buffer[DEVICES], table[DEVICES];
static struct contents *contents[DEVICES];
static uint64_t random_state;
static uint32_t rounds_done;

static size_t pick(size_t below) { return next_random(&random_state) % below; }

static void use(int device) {
    gpu = card[device];
    OK(cuCtxSetCurrent(gpu.context));
}

static void wait_for_both(void) {
    for (int d = 0; d < DEVICES; d++) {
        use(d);
        OK(cuCtxSynchronize());
    }
}

/* What comes next on the stream of `device` comes after what there is on the other's. */
static void after_the_other(int device) {
    use(1 - device);
    OK(cuEventRecord(event[1 - device], stream[1 - device]));
    use(device);
    OK(cuStreamWaitEvent(stream[device], event[1 - device], 0));
}

static void start(void) {
    int count;
    check_library((void *)cuMemAlloc_v2);
    OK(cuInit(0));
    OK(cuDeviceGetCount(&count));
    CHECK(count >= DEVICES, "needs two devices, there are %d", count);
    for (int d = 0; d < DEVICES; d++) {
        OK(cuDeviceGet(&gpu.device, d));
        OK(cuDevicePrimaryCtxRetain(&gpu.context, gpu.device));
        OK(cuCtxSetCurrent(gpu.context));
        load_kernels();
        card[d] = gpu;
        OK(cuStreamCreate(&stream[d], 0));
        OK(cuEventCreate(&event[d], EVENT_DISABLE_TIMING));
        before[d] = settled_free_bytes();
    }
}

static void allocate(int device, size_t index) {
    uint32_t seed = (uint32_t)next_random(&random_state);
    use(device);
    OK(cuMemAlloc_v2(&buffer[device][index], bytes));
    run_fill_on(stream[device], buffer[device][index], bytes / 4, seed);
    contents[device][index] = filled(seed);
}

/* Other work on a device, so that its data has reason to go elsewhere. */
static void mix(int by, int device, size_t index) {
    uint32_t round = rounds_done++;
    use(by);
    run_mix_on(stream[by], buffer[device][index], bytes / 4, round);
    contents[device][index] = mixed(contents[device][index], round);
}

static const char *const WAYS[] = {"cuMemcpyPeerAsync from the source",  "cuMemcpyPeerAsync from the target", "cuMemcpyPeer",
                                   "cuMemcpyDtoDAsync from the source",  "cuMemcpyDtoDAsync from the target", "cuMemcpyDtoD",
                                   "cuMemcpyAsync", "cuMemcpy"};
enum { WAYS_THERE_ARE = sizeof WAYS / sizeof *WAYS };

/* A whole buffer from one device to the other. */
static void copy(int way, int to, size_t to_index, size_t from_index) {
    int from = 1 - to, by = way == 1 || way == 4 ? to : from;
    CUdeviceptr target = buffer[to][to_index], source = buffer[from][from_index];
    CUresult result = CUDA_SUCCESS;
    if (way == 2 || way == 5 || way == 7) wait_for_both();
    after_the_other(by);
    switch (way) {
        case 0:
        case 1: result = cuMemcpyPeerAsync(target, card[to].context, source, card[from].context, bytes, stream[by]); break;
        case 2: result = cuMemcpyPeer(target, card[to].context, source, card[from].context, bytes); break;
        case 3:
        case 4: result = cuMemcpyDtoDAsync_v2(target, source, bytes, stream[by]); break;
        case 5: result = cuMemcpyDtoD_v2(target, source, bytes); break;
        case 6: result = cuMemcpyAsync(target, source, bytes, stream[by]); break;
        case 7: result = cuMemcpy(target, source, bytes); break;
    }
    CHECK(result == CUDA_SUCCESS, "%s gave %d", WAYS[way], result);
    if (way == 2 || way == 5 || way == 7) wait_for_both();
    after_the_other(1 - by);
    contents[to][to_index] = contents[from][from_index];
}

/* A table in memory of `by` that names buffers of both devices; written by the host or by a kernel. */
static void through_a_table(int by) {
    uint32_t round = rounds_done++;
    size_t first = pick(buffers);
    after_the_other(by);
    for (size_t i = 0; i < TABLE; i++) {
        size_t index = (first + i) % buffers;
        CUdeviceptr named = buffer[i % DEVICES][index], entry = table[by] + i * 8;
        contents[i % DEVICES][index] = mixed(contents[i % DEVICES][index], round);
        if (pick(2)) run_store_pointers_on(stream[by], entry, named, 0, 1);
        else OK(cuMemcpyHtoDAsync_v2(entry, &named, sizeof named, stream[by]));
    }
    run_batched_mix_on(stream[by], table[by], TABLE, bytes / 4, round);
    after_the_other(1 - by);
}

static void check_all(const char *when) {
    wait_for_both();
    for (int d = 0; d < DEVICES; d++) {
        use(d);
        for (size_t b = 0; b < buffers; b++) check_contents(buffer[d][b], bytes / 4, contents[d][b], (size_t)d * 1000 + b);
    }
    printf("%s: ok\n", when);
    fflush(stdout);
}

static void without_access(size_t rounds) {
    for (int way = 0; way < WAYS_THERE_ARE; way++) {
        size_t index = pick(buffers);
        int device = way % DEVICES;
        copy(way, device, index, pick(buffers));
        wait_for_both();
        use(device);
        check_contents(buffer[device][index], bytes / 4, contents[device][index], index);
        printf("%s: ok\n", WAYS[way]);
        fflush(stdout);
    }
    for (size_t round = 0; round < rounds; round++) {
        int device = (int)pick(DEVICES);
        if (pick(3)) mix(device, device, pick(buffers));
        else copy((int)pick(WAYS_THERE_ARE), device, pick(buffers), pick(buffers));
    }
    check_all("copies without peer access");
}

static void set_access(int enable) {
    for (int d = 0; d < DEVICES; d++) {
        use(d);
        CUcontext peer = card[1 - d].context;
        if (enable) {
            OK(cuCtxEnablePeerAccess(peer, 0));
            EXPECT(cuCtxEnablePeerAccess(peer, 0), CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
            FAILS(cuCtxEnablePeerAccess(card[d].context, 0));
            FAILS(cuCtxEnablePeerAccess(peer, 1));
        } else {
            OK(cuCtxDisablePeerAccess(peer));
            EXPECT(cuCtxDisablePeerAccess(peer), CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
        }
    }
}

static void with_access(size_t rounds) {
    for (size_t round = 0; round < rounds; round++) {
        int device = (int)pick(DEVICES);
        switch (pick(5)) {
            case 0:
                after_the_other(device);
                mix(device, 1 - device, pick(buffers));
                after_the_other(1 - device);
                break;
            case 1: through_a_table(device); break;
            case 2: copy((int)pick(WAYS_THERE_ARE), device, pick(buffers), pick(buffers)); break;
            case 3: {
                /* New memory is open to the peer as well. */
                size_t index = pick(buffers);
                wait_for_both();
                use(device);
                OK(cuMemFree_v2(buffer[device][index]));
                allocate(device, index);
                after_the_other(1 - device);
                mix(1 - device, device, index);
                after_the_other(device);
                break;
            }
            default: mix(device, device, pick(buffers));
        }
    }
    check_all("works with peer access");
}

/* Memory of a pool of device 0, opened to device 1. */
static void pool_opened(void) {
    CUmemoryPool pool;
    CUdeviceptr pooled[4];
    struct contents expected[4];
    CUmemAccessDesc access = {{LOCATION_DEVICE, card[1].device}, ACCESS_READWRITE};
    use(0);
    OK(cuDeviceGetDefaultMemPool(&pool, card[0].device));
    OK(cuMemAllocAsync(&pooled[0], bytes, stream[0]));
    OK(cuMemPoolSetAccess(pool, &access, 1));
    for (int i = 1; i < 4; i++) OK(cuMemAllocAsync(&pooled[i], bytes, stream[0]));
    for (int i = 0; i < 4; i++) {
        run_fill_on(stream[0], pooled[i], bytes / 4, (uint32_t)i);
        expected[i] = mixed(filled((uint32_t)i), 5);
    }
    after_the_other(1);
    for (int i = 0; i < 4; i++) run_mix_on(stream[1], pooled[i], bytes / 4, 5);
    after_the_other(0);
    for (int i = 0; i < 4; i++) {
        check_contents(pooled[i], bytes / 4, expected[i], (size_t)i);
        OK(cuMemFreeAsync(pooled[i], stream[0]));
    }
    OK(cuStreamSynchronize(stream[0]));
    access.flags = 0;
    OK(cuMemPoolSetAccess(pool, &access, 1));
    OK(cuMemPoolTrimTo(pool, 0));
    printf("a pool opened to the peer: ok\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    buffers = argument(argc, argv, 1, 10);
    bytes = argument(argc, argv, 2, 24) * MIB;
    size_t rounds = argument(argc, argv, 3, 60);
    CHECK(buffers >= TABLE, "too few buffers");
    random_state = seed_argument(argc, argv, 4);
    start();
    for (int d = 0; d < DEVICES; d++) {
        buffer[d] = calloc(buffers, sizeof **buffer);
        contents[d] = calloc(buffers, sizeof **contents);
        CHECK(buffer[d] && contents[d], "no memory");
        use(d);
        OK(cuMemAlloc_v2(&table[d], 4096));
        for (size_t b = 0; b < buffers; b++) allocate(d, b);
    }
    without_access(rounds);
    int can[DEVICES];
    for (int d = 0; d < DEVICES; d++) OK(cuDeviceCanAccessPeer(&can[d], card[d].device, card[1 - d].device));
    CHECK(can[0] == can[1], "access from 0 to 1 %d, back %d", can[0], can[1]);
    if (can[0]) {
        set_access(1);
        with_access(rounds);
        set_access(0);
        without_access(rounds / 4);
        set_access(1);
        with_access(rounds / 4);
        set_access(0);
        pool_opened();
    }
    for (int d = 0; d < DEVICES; d++) {
        use(d);
        for (size_t b = 0; b < buffers; b++) OK(cuMemFree_v2(buffer[d][b]));
        OK(cuMemFree_v2(table[d]));
        OK(cuStreamDestroy_v2(stream[d]));
        OK(cuEventDestroy_v2(event[d]));
    }
    /* RAM that one device has taken the other has not. */
    for (int d = 0; d < DEVICES; d++) {
        use(d);
        check_free_is(before[d]);
    }
    printf("peers: ok, %zu x %zu MiB on each device, %zu rounds, peer access %s\n", buffers, bytes / MIB, rounds,
           can[0] ? "used" : "not there");
    return 0;
}
