/* Random legal sequences of every kind of allocation call, against a plain model: what each block must hold and
 * whose address is whose. Kinds mix as in a program with several libraries in it; running out of memory is legal
 * too, and must leave everything else as it was.
 * Arguments: [MiB that the blocks may take in all, default 640] [seed] [steps, default 400]
 *            [MiB that are taken before anything else and kept, so that the rest spills, default 0] */
#include "program.h"

enum { SLOTS = 32, STREAMS = 3, WINDOW = 4096 };
enum kind { NONE, PLAIN, PITCHED, ORDERED, MAPPED, KINDS };

struct slot {
    enum kind kind;
    CUdeviceptr at;
    size_t asked;    /* what the program asked for: what the address range must say */
    uint64_t words;  /* what is filled */
    uint32_t seed;
    CUstream stream;
};

static struct slot slots[SLOTS];
static CUstream streams[STREAMS];
static uint64_t random_state;
static unsigned refused;

static uint64_t pick(uint64_t below) {
    return next_random(&random_state) % below;
}

static void fill(struct slot *slot) {
    slot->seed = (uint32_t)next_random(&random_state);
    run_fill_on(slot->stream, slot->at, slot->words, slot->seed);
}

static CUresult map(struct slot *slot, size_t bytes) {
    CUmemAllocationProp properties = {0};
    properties.type = ALLOCATION_PINNED;
    properties.location.type = LOCATION_DEVICE;
    properties.location.id = gpu.device;
    CUmemAccessDesc access = {{LOCATION_DEVICE, gpu.device}, ACCESS_READWRITE};
    CUmemGenericAllocationHandle handle;
    CUresult result = cuMemCreate(&handle, bytes, &properties, 0);
    if (result != CUDA_SUCCESS) return result;
    OK(cuMemAddressReserve(&slot->at, bytes, 0, 0, 0));
    OK(cuMemMap(slot->at, bytes, 0, handle, 0));
    OK(cuMemSetAccess(slot->at, bytes, &access, 1));
    /* The mapping keeps it. */
    OK(cuMemRelease(handle));
    return CUDA_SUCCESS;
}

static void allocate(struct slot *slot, size_t most) {
    size_t limit = pick(2) ? most : 200000, bytes = 4 + (size_t)pick(limit - 4);
    enum kind kind = (enum kind)(1 + pick(KINDS - 1));
    CUresult result;
    slot->stream = streams[pick(STREAMS)];
    slot->asked = bytes;
    if (kind == PLAIN) {
        result = cuMemAlloc_v2(&slot->at, bytes);
    } else if (kind == PITCHED) {
        size_t pitch, height = 1 + (size_t)pick(64), width = bytes / height + 1;
        result = cuMemAllocPitch_v2(&slot->at, &pitch, width, height, 4);
        if (result == CUDA_SUCCESS) slot->asked = pitch * height;
    } else if (kind == ORDERED) {
        result = cuMemAllocAsync(&slot->at, bytes, slot->stream);
    } else {
        slot->asked = (bytes + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
        result = map(slot, slot->asked);
    }
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_OUT_OF_MEMORY, "kind %d, %zu bytes: %d", kind, bytes, result);
    if (result != CUDA_SUCCESS) {
        refused++;
        return;
    }
    slot->kind = kind;
    slot->words = slot->asked / 4;
    fill(slot);
}

static void release(struct slot *slot) {
    if (slot->kind == MAPPED) {
        OK(cuStreamSynchronize(slot->stream));
        OK(cuMemUnmap(slot->at, slot->asked));
        OK(cuMemAddressFree(slot->at, slot->asked));
    } else if (slot->kind != PITCHED && pick(2)) {
        /* Either kind of pointer, on the stream that last used it. */
        OK(cuMemFreeAsync(slot->at, slot->stream));
    } else {
        /* The driver does not wait for the work on memory that was had in order. */
        if (slot->kind == ORDERED) OK(cuStreamSynchronize(slot->stream));
        OK(cuMemFree_v2(slot->at));
    }
    slot->kind = NONE;
}

static void verify(const struct slot *slot) {
    uint32_t words[WINDOW];
    uint64_t first = pick(slot->words), count = slot->words - first < WINDOW ? slot->words - first : WINDOW;
    OK(cuMemcpyDtoHAsync_v2(words, slot->at + first * 4, count * 4, slot->stream));
    OK(cuStreamSynchronize(slot->stream));
    for (uint64_t i = 0; i < count; i++)
        CHECK(words[i] == mix_word((uint32_t)(first + i) + slot->seed), "kind %d, word %" PRIu64 " of %" PRIu64, slot->kind, first + i, slot->words);
}

static void query(const struct slot *slot) {
    CUdeviceptr base, start = slot->at;
    size_t size;
    unsigned type;
    OK(cuPointerGetAttribute(&type, POINTER_MEMORY_TYPE, slot->at + pick(slot->asked)));
    CHECK(type == MEMORY_DEVICE, "kind %d: memory type %u", slot->kind, type);
    OK(cuMemGetAddressRange_v2(&base, &size, slot->at + pick(slot->asked)));
    CHECK(base == start && size >= slot->asked, "kind %d: range %llx + %zu, not %llx + %zu", slot->kind, base, size, start, slot->asked);
}

/* The contents of one block into another, in the order of the second one's stream. */
static void copy(struct slot *to, const struct slot *from) {
    if (to == from || to->kind == NONE || from->kind == NONE || from->words < to->words) return;
    OK(cuStreamSynchronize(from->stream));
    OK(cuMemcpyDtoDAsync_v2(to->at, from->at, to->words * 4, to->stream));
    to->seed = from->seed;
    OK(cuStreamSynchronize(to->stream));
}

int main(int argc, char **argv) {
    size_t bytes = argument(argc, argv, 1, 640) * MIB;
    random_state = seed_argument(argc, argv, 2);
    size_t steps = argument(argc, argv, 3, 400);
    start_gpu();
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, gpu.device));
    for (int s = 0; s < STREAMS; s++) OK(cuStreamCreate(&streams[s], 1));
    size_t before = settled_free_bytes(), ballast_bytes = argument(argc, argv, 4, 0) * MIB;
    CUdeviceptr ballast = 0;
    if (ballast_bytes) OK(cuMemAlloc_v2(&ballast, ballast_bytes));

    for (size_t step = 0; step < steps; step++) {
        struct slot *slot = &slots[pick(SLOTS)];
        if (slot->kind == NONE) {
            allocate(slot, bytes / SLOTS * 2);
            continue;
        }
        switch (pick(6)) {
        case 0: release(slot); break;
        case 1: fill(slot); break;
        case 2: copy(slot, &slots[pick(SLOTS)]); break;
        case 3: query(slot); break;
        default: verify(slot); break;
        }
    }
    for (int s = 0; s < SLOTS; s++)
        if (slots[s].kind != NONE) verify(&slots[s]);
    for (int s = 0; s < SLOTS; s++)
        if (slots[s].kind != NONE) release(&slots[s]);
    for (int s = 0; s < STREAMS; s++) OK(cuStreamSynchronize(streams[s]));
    OK(cuCtxSynchronize());
    OK(cuMemFree_v2(ballast));
    OK(cuMemPoolTrimTo(pool, 0));
    /* Anything taken now shows that what was freed in a stream's order has been given back. */
    check_compute(3 * MIB);
    check_free_is(before);
    printf("model: ok, %zu steps, %u refused\n", steps, refused);
    return 0;
}
