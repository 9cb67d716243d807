/* Memory shared with another process by the driver's memory IPC: a large allocation, small ones that share their memory
 * with others, memory that lay in RAM before, memory that is freed while it is open, an exporter that is killed.
 * Arguments: [MiB of other memory, so that some of it is in RAM; default 0]
 * EMUV_TEST_PEER_DEVICE: the device that the other processes use (default 0) */
#include "program.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { MOST = 64 };
static const size_t LARGE = 24 * MIB;

/* What one process asks of the other, and the answer. A peer holds a buffer, opened or allocated, and works on it. */
enum op { ALLOCATE, OPEN, CLOSE, FILL, SUM, END };
struct request {
    enum op op;
    CUipcMemHandle handle;
    size_t bytes, offset;
    uint32_t seed;
};
struct answer {
    CUresult result;
    uint64_t value;
    CUipcMemHandle handle;
};

static void check_imported(CUdeviceptr pointer, size_t bytes) {
    CUdeviceptr base;
    size_t size;
    unsigned type;
    int device;
    OK(cuMemGetAddressRange_v2(&base, &size, pointer + bytes / 2));
    CHECK(base <= pointer && pointer + bytes <= base + size, "opened %llx, the range is %llx, %zu bytes", pointer, base, size);
    OK(cuPointerGetAttribute(&type, POINTER_MEMORY_TYPE, pointer + bytes / 2));
    CHECK(type == MEMORY_DEVICE, "memory type %u", type);
    int attributes[] = {POINTER_MEMORY_TYPE, POINTER_DEVICE_ORDINAL};
    void *values[] = {&type, &device};
    OK(cuPointerGetAttributes(2, attributes, values, pointer));
    /* One of the two on which memory is allocated here. */
    CHECK(type == MEMORY_DEVICE && (device == 0 || device == (int)number(getenv("EMUV_TEST_PEER_DEVICE"), 0)), "memory type %u, device %d", type, device);
}

static int peer(int channel) {
    CUdeviceptr buffer = 0;
    struct request request;
    start_gpu();
    while (read(channel, &request, sizeof request) == sizeof request) {
        struct answer answer = {CUDA_SUCCESS, 0, {{0}}};
        switch (request.op) {
            case ALLOCATE:
                OK(cuMemAlloc_v2(&buffer, request.bytes));
                OK(cuIpcGetMemHandle(&answer.handle, buffer));
                break;
            case OPEN:
                answer.result = cuIpcOpenMemHandle_v2(&buffer, request.handle, IPC_LAZY_ENABLE_PEER_ACCESS);
                answer.value = buffer;
                if (answer.result == CUDA_SUCCESS) check_imported(buffer, request.bytes);
                break;
            case CLOSE: answer.result = cuIpcCloseMemHandle(buffer); break;
            case FILL:
                run_fill(buffer + request.offset, request.bytes / 4, request.seed);
                OK(cuCtxSynchronize());
                break;
            case SUM: answer.value = run_reduce(buffer + request.offset, request.bytes / 4); break;
            case END: return 0;
        }
        CHECK(write(channel, &answer, sizeof answer) == sizeof answer, "the other process has gone");
    }
    return 1;
}

struct peer {
    pid_t pid;
    int channel;
};

static struct peer start_peer(char *program) {
    int ends[2];
    char number[16];
    struct peer peer;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair failed");
    /* A peer ends when this process does. */
    CHECK(fcntl(ends[0], F_SETFD, FD_CLOEXEC) == 0, "fcntl failed");
    snprintf(number, sizeof number, "%d", ends[1]);
    char *arguments[] = {program, "peer", number, NULL}, *device = getenv("EMUV_TEST_PEER_DEVICE");
    if (device) setenv("EMUV_TEST_DEVICE", device, 1);
    CHECK(posix_spawn(&peer.pid, program, NULL, NULL, arguments, environ) == 0, "posix_spawn failed");
    unsetenv("EMUV_TEST_DEVICE");
    close(ends[1]);
    peer.channel = ends[0];
    return peer;
}

static struct answer ask(struct peer peer, struct request request) {
    struct answer answer;
    CHECK(write(peer.channel, &request, sizeof request) == sizeof request, "the peer has gone");
    CHECK(read(peer.channel, &answer, sizeof answer) == sizeof answer, "the peer has ended");
    return answer;
}

static struct answer ask_ok(struct peer peer, struct request request) {
    struct answer answer = ask(peer, request);
    CHECK(answer.result == CUDA_SUCCESS, "request %d: the peer got %d", request.op, answer.result);
    return answer;
}

static void end_peer(struct peer peer) {
    int status;
    struct request request = {.op = END};
    CHECK(write(peer.channel, &request, sizeof request) == sizeof request, "the peer has gone");
    close(peer.channel);
    CHECK(waitpid(peer.pid, &status, 0) == peer.pid, "waitpid failed");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the peer ended with status 0x%x", status);
}

static CUipcMemHandle exported(CUdeviceptr pointer) {
    CUipcMemHandle handle;
    OK(cuIpcGetMemHandle(&handle, pointer));
    return handle;
}

/* All work is done before: streams of two processes know nothing of each other. */
static void open_in(struct peer peer, CUdeviceptr pointer, size_t bytes) {
    OK(cuCtxSynchronize());
    ask_ok(peer, (struct request){.op = OPEN, .handle = exported(pointer), .bytes = bytes});
}

/* The peer sees what is here; what it writes is seen here. */
static void check_shared(struct peer peer, CUdeviceptr buffer, size_t bytes, uint32_t seed) {
    uint64_t sum = ask_ok(peer, (struct request){.op = SUM, .bytes = bytes}).value;
    CHECK(sum == run_reduce(buffer, bytes / 4), "the peer sees something else at %llx", buffer);
    ask_ok(peer, (struct request){.op = FILL, .bytes = bytes, .seed = seed});
    check_contents(buffer, bytes / 4, filled(seed), seed);
}

static void a_large_allocation(struct peer peer) {
    CUdeviceptr buffer, same;
    unsigned char capable = 0;
    OK(cuMemAlloc_v2(&buffer, LARGE));
    OK(cuPointerGetAttribute(&capable, POINTER_LEGACY_IPC_CAPABLE, buffer));
    CHECK(capable, "a pointer from cuMemAlloc is said not to be for the IPC calls");
    run_fill(buffer, LARGE / 4, 3);
    CUipcMemHandle first = exported(buffer), again = exported(buffer + 5 * MIB);
    CHECK(!memcmp(&first, &again, sizeof first), "two handles of one allocation differ");
    EXPECT(cuIpcOpenMemHandle_v2(&same, first, IPC_LAZY_ENABLE_PEER_ACCESS), CUDA_ERROR_INVALID_CONTEXT);
    EXPECT(cuIpcOpenMemHandle_v2(&same, first, 0), CUDA_ERROR_INVALID_VALUE);

    open_in(peer, buffer, LARGE);
    CHECK(ask_ok(peer, (struct request){.op = SUM, .bytes = LARGE}).value == reduce_filled(3, LARGE / 4), "the peer sees something else");
    check_shared(peer, buffer, LARGE, 4);
    /* Opened twice: one address, and it takes two to close it. */
    uint64_t address = ask_ok(peer, (struct request){.op = OPEN, .handle = first, .bytes = LARGE}).value;
    CHECK(ask_ok(peer, (struct request){.op = OPEN, .handle = first, .bytes = LARGE}).value == address, "another address");
    ask_ok(peer, (struct request){.op = CLOSE});
    ask_ok(peer, (struct request){.op = CLOSE});
    check_shared(peer, buffer, LARGE, 5);
    ask_ok(peer, (struct request){.op = CLOSE});
    CHECK(ask(peer, (struct request){.op = CLOSE}).result != CUDA_SUCCESS, "closed more often than opened");
    check_contents(buffer, LARGE / 4, filled(5), 0);
    OK(cuMemFree_v2(buffer));
}

static void small_allocations(struct peer peer) {
    enum { SMALL = 5 };
    CUdeviceptr small[SMALL];
    size_t bytes = 4000;
    for (uint32_t s = 0; s < SMALL; s++) {
        OK(cuMemAlloc_v2(&small[s], bytes));
        run_fill(small[s], bytes / 4, s);
    }
    CUipcMemHandle first = exported(small[2]), neighbour = exported(small[3]);
    CHECK(memcmp(&first, &neighbour, sizeof first), "two allocations have one handle");
    open_in(peer, small[2] + 512, bytes);
    check_shared(peer, small[2], bytes, 20);
    ask_ok(peer, (struct request){.op = FILL, .bytes = 400, .offset = 2000, .seed = 21});
    check_contents(small[2] + 2000, 100, filled(21), 21);
    for (uint32_t s = 0; s < SMALL; s++)
        if (s != 2) check_contents(small[s], bytes / 4, filled(s), s);
    ask_ok(peer, (struct request){.op = CLOSE});
    for (size_t s = 0; s < SMALL; s++) OK(cuMemFree_v2(small[s]));
}

/* More than VRAM holds: some of what is exported was in RAM, and the rest moves while the peer works. */
static void among_much_memory(struct peer peer, size_t count) {
    CUdeviceptr buffer[MOST];
    struct contents contents[MOST];
    for (size_t b = 0; b < count; b++) {
        OK(cuMemAlloc_v2(&buffer[b], LARGE));
        contents[b] = filled(100 + (uint32_t)b);
        run_fill(buffer[b], LARGE / 4, contents[b].seed);
    }
    /* What is kept for small allocations is used up too. */
    CUdeviceptr hot[12], small;
    for (size_t h = 0; h < 12; h++) OK(cuMemAlloc_v2(&hot[h], 2 * MIB));
    OK(cuMemAlloc_v2(&small, 4000));
    run_fill(small, 1000, 50);
    open_in(peer, small, 4000);
    CHECK(ask_ok(peer, (struct request){.op = SUM, .bytes = 4000}).value == reduce_filled(50, 1000), "the peer sees something else");
    check_shared(peer, small, 4000, 51);
    ask_ok(peer, (struct request){.op = CLOSE});
    for (size_t h = 0; h < 12; h++) OK(cuMemFree_v2(hot[h]));
    OK(cuMemFree_v2(small));
    for (size_t exports = 0; exports < 3; exports++) {
        size_t which = count - 1 - exports * (count / 3);
        open_in(peer, buffer[which], LARGE);
        for (uint32_t round = 0; round < 2; round++) {
            uint32_t seed = 1000 + (uint32_t)exports * 10 + round;
            for (size_t b = 0; b < count; b++) {
                run_mix(buffer[b], LARGE / 4, round);
                contents[b] = mixed(contents[b], round);
            }
            OK(cuCtxSynchronize());
            CHECK(ask_ok(peer, (struct request){.op = SUM, .bytes = LARGE}).value == reduce_contents(contents[which], LARGE / 4), "export %zu, round %u: the peer sees something else", exports, round);
            ask_ok(peer, (struct request){.op = FILL, .bytes = LARGE, .seed = seed});
            contents[which] = filled(seed);
        }
        ask_ok(peer, (struct request){.op = CLOSE});
    }
    for (size_t b = 0; b < count; b++) {
        check_contents(buffer[b], LARGE / 4, contents[b], b);
        OK(cuMemFree_v2(buffer[b]));
    }
}

static void freed_while_open(struct peer peer, int budgeted) {
    CUdeviceptr buffer, other;
    size_t before = free_bytes();
    OK(cuMemAlloc_v2(&buffer, LARGE));
    run_fill(buffer, LARGE / 4, 7);
    OK(cuCtxSynchronize());
    CUipcMemHandle handle = exported(buffer);
    open_in(peer, buffer, LARGE);
    OK(cuMemFree_v2(buffer));
    /* Without a budget the card's own memory counts, and there it is as long as the other has it. */
    if (budgeted || free_bytes() + LARGE != before) check_free_is(before);
    OK(cuMemAlloc_v2(&other, LARGE));
    run_fill(other, LARGE / 4, 8);
    OK(cuCtxSynchronize());
    CHECK(ask_ok(peer, (struct request){.op = SUM, .bytes = LARGE}).value == reduce_filled(7, LARGE / 4), "freed memory is somebody else's");
    ask_ok(peer, (struct request){.op = CLOSE});
    struct answer answer = ask(peer, (struct request){.op = OPEN, .handle = handle, .bytes = LARGE});
    CHECK(answer.result != CUDA_SUCCESS, "memory that was freed and closed can be opened");
    OK(cuMemFree_v2(other));
    check_free_is(before);
}

static void a_killed_exporter(char *program) {
    struct peer exporter = start_peer(program);
    CUdeviceptr opened, other;
    size_t before = free_bytes();
    CUipcMemHandle first = ask_ok(exporter, (struct request){.op = ALLOCATE, .bytes = LARGE}).handle;
    ask_ok(exporter, (struct request){.op = FILL, .bytes = LARGE, .seed = 11});
    OK(cuIpcOpenMemHandle_v2(&opened, first, IPC_LAZY_ENABLE_PEER_ACCESS));
    check_imported(opened, LARGE);
    /* It is the exporter's memory, not this process's. */
    if (getenv("EMUV_TEST_EXPECT") && !strcmp(getenv("EMUV_TEST_EXPECT"), "emuv")) check_free_is(before);
    CUipcMemHandle second = ask_ok(exporter, (struct request){.op = ALLOCATE, .bytes = LARGE}).handle;
    kill(exporter.pid, SIGKILL);
    CHECK(waitpid(exporter.pid, NULL, 0) == exporter.pid, "waitpid failed");
    close(exporter.channel);
    CHECK(run_reduce(opened, LARGE / 4) == reduce_filled(11, LARGE / 4), "the memory has gone with the exporter");
    double start = now_us();
    FAILS(cuIpcOpenMemHandle_v2(&other, second, IPC_LAZY_ENABLE_PEER_ACCESS));
    CHECK(now_us() - start < 60e6, "it took a minute to notice that the exporter is dead");
    run_fill(opened, LARGE / 4, 12);
    CHECK(run_reduce(opened, LARGE / 4) == reduce_filled(12, LARGE / 4), "the memory has gone with the exporter");
    FAILS(cuMemFree_v2(opened));
    FAILS(cuIpcCloseMemHandle(opened + 512));
    OK(cuIpcCloseMemHandle(opened));
    FAILS(cuIpcCloseMemHandle(opened));
}

/* Memory that the calls do not take: of pools, of the program's own mappings, of nobody. */
static void what_is_refused(void) {
    CUdeviceptr pooled, mapped;
    CUipcMemHandle handle;
    CUmemGenericAllocationHandle memory;
    OK(cuMemAllocAsync(&pooled, LARGE, NULL));
    FAILS(cuIpcGetMemHandle(&handle, pooled));
    OK(cuMemFreeAsync(pooled, NULL));
    OK(cuCtxSynchronize());
    CUmemAllocationProp properties = {0};
    properties.type = ALLOCATION_PINNED;
    properties.location.type = LOCATION_DEVICE;
    OK(cuMemAddressReserve(&mapped, 2 * MIB, 0, 0, 0));
    OK(cuMemCreate(&memory, 2 * MIB, &properties, 0));
    OK(cuMemMap(mapped, 2 * MIB, 0, memory, 0));
    FAILS(cuIpcGetMemHandle(&handle, mapped));
    OK(cuMemUnmap(mapped, 2 * MIB));
    FAILS(cuIpcGetMemHandle(&handle, mapped));
    OK(cuMemRelease(memory));
    OK(cuMemAddressFree(mapped, 2 * MIB));
    memset(&handle, 0x5a, sizeof handle);
    FAILS(cuIpcOpenMemHandle_v2(&mapped, handle, IPC_LAZY_ENABLE_PEER_ACCESS));
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "peer")) return peer(atoi(argv[2]));
    size_t count = argument(argc, argv, 1, 0) * MIB / LARGE;
    CHECK(count <= MOST, "%zu buffers", count);
    signal(SIGPIPE, SIG_IGN);
    start_gpu();
    size_t before = settled_free_bytes();
    struct peer peer = start_peer(argv[0]);
    a_large_allocation(peer);
    small_allocations(peer);
    if (count >= 3) among_much_memory(peer, count);
    freed_while_open(peer, count > 0);
    end_peer(peer);
    a_killed_exporter(argv[0]);
    what_is_refused();
    check_free_is(before);
    printf("ipc: ok, %zu buffers of %zu MiB\n", count, LARGE / MIB);
    return 0;
}
