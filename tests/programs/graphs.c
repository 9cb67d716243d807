/* Graphs, captured and built by hand, on more memory than VRAM holds: a graph keeps the addresses of its buffers and
 * is launched a thousand times without naming them again; its executable is turned to other buffers, and a clone
 * outlives the original.
 * Arguments: [buffers, default 12] [MiB of each, default 32] [launches of the small graph, default 1000] [seed]
 * [kernels that the GPU has yet to run when the executable is turned to other buffers for the first time, default 0] */
#include "program.h"

/* At the end of each buffer is a small part that the small graph works on. */
enum { TAIL_WORDS = 1024, NAMED = 2 };

static uint64_t random_state, words;
static size_t buffers, busy;
static CUdeviceptr *buffer;
static struct contents *contents, *tail;
static CUstream stream, side;
static CUevent forked, joined;

static CUdeviceptr tail_of(size_t b) {
    return buffer[b] + words * 4;
}

static void mix_plainly(size_t b, uint32_t round) {
    run_mix_on(stream, buffer[b], words, round);
    contents[b] = mixed(contents[b], round);
}

static CUgraphExec instantiate(CUgraph graph) {
    CUgraphExec executable;
    OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
    return executable;
}

static CUDA_KERNEL_NODE_PARAMS kernel(CUfunction function, void **parameters) {
    CUDA_KERNEL_NODE_PARAMS node = {0};
    node.func = function;
    node.gridDimX = 256;
    node.gridDimY = node.gridDimZ = 1;
    node.blockDimX = 256;
    node.blockDimY = node.blockDimZ = 1;
    node.kernelParams = parameters;
    return node;
}

static size_t node_count(CUgraph graph, int of_type) {
    size_t count = 0, found = 0;
    OK(cuGraphGetNodes(graph, NULL, &count));
    CUgraphNode *nodes = calloc(count + 1, sizeof *nodes);
    CHECK(nodes, "no memory");
    OK(cuGraphGetNodes(graph, nodes, &count));
    for (size_t i = 0; i < count; i++) {
        int type;
        OK(cuGraphNodeGetType(nodes[i], &type));
        found += type == of_type;
    }
    free(nodes);
    return found;
}

/* Mixes the buffers from `first` on, on two streams by turns, and copies the last one's contents to the first. */
static CUgraph capture_sweep(size_t first, size_t count, uint32_t round) {
    CUgraph graph;
    OK(cuStreamBeginCapture_v2(stream, CAPTURE_THREAD_LOCAL));
    OK(cuEventRecord(forked, stream));
    OK(cuStreamWaitEvent(side, forked, 0));
    for (size_t b = first; b < first + count; b++) run_mix_on(b % 2 ? side : stream, buffer[b], words, round);
    OK(cuEventRecord(joined, side));
    OK(cuStreamWaitEvent(stream, joined, 0));
    OK(cuMemcpyDtoDAsync_v2(buffer[first], buffer[first + count - 1], words * 4, stream));
    OK(cuStreamEndCapture(stream, &graph));
    CHECK(node_count(graph, NODE_KERNEL) == count, "%zu kernel nodes", node_count(graph, NODE_KERNEL));
    CHECK(node_count(graph, NODE_MEMCPY) == 1, "%zu copies", node_count(graph, NODE_MEMCPY));
    return graph;
}

static void launch_sweep(CUgraphExec executable, size_t first, size_t count, uint32_t round) {
    OK(cuGraphLaunch(executable, stream));
    for (size_t b = first; b < first + count; b++) contents[b] = mixed(contents[b], round);
    contents[first] = contents[first + count - 1];
}

/* A sweep over one half of the buffers, its executable turned to the other half and back, and a clone. */
static void sweeps(void) {
    size_t half = buffers / 2, at[2] = {0, buffers - half}, now = 0;
    CUgraph graph[2] = {capture_sweep(at[0], half, 1), capture_sweep(at[1], half, 1)}, clone;
    CUgraphExec executable = instantiate(graph[0]);
    for (int i = 0; i < 3; i++) launch_sweep(executable, at[0], half, 1);
    for (uint32_t i = 0; i < 8; i++) {
        CUgraphExecUpdateResultInfo result;
        now = next_random(&random_state) % 2;
        if (now) {
            for (; busy > 0; busy--) mix_plainly(at[1], (uint32_t)busy);
        }
        OK(cuGraphExecUpdate_v2(executable, graph[now], &result));
        CHECK(result.result == GRAPH_UPDATE_SUCCESS, "update result %d", result.result);
        launch_sweep(executable, at[now], half, 1);
        /* Work outside the graph comes between. */
        mix_plainly(next_random(&random_state) % buffers, i);
    }
    OK(cuGraphClone(&clone, graph[1]));
    OK(cuGraphDestroy(graph[0]));
    OK(cuGraphDestroy(graph[1]));
    launch_sweep(executable, at[now], half, 1);
    OK(cuStreamSynchronize(stream));
    OK(cuGraphExecDestroy(executable));
    executable = instantiate(clone);
    OK(cuGraphDestroy(clone));
    for (int i = 0; i < 3; i++) launch_sweep(executable, at[1], half, 1);
    OK(cuStreamSynchronize(stream));
    OK(cuGraphExecDestroy(executable));
}

/* Nodes added by hand: a memset and a fill, a mix through an array of pointers after both, a copy after that. */
static void by_hand(CUdeviceptr table) {
    CUgraph graph;
    CUgraphNode made[2], batch, copy;
    uint32_t seed = 4711, round = 17;
    uint64_t named = 2;
    CUDA_MEMSET_NODE_PARAMS memset_parameters = {.dst = buffer[0], .value = 0x01020304, .elementSize = 4, .width = words, .height = 1};
    void *fill_parameters[] = {&buffer[1], &words, &seed}, *batch_parameters[] = {&table, &named, &words, &round};
    CUDA_KERNEL_NODE_PARAMS fill = kernel(gpu.fill, fill_parameters), mix = kernel(gpu.batched_mix, batch_parameters);
    CUDA_MEMCPY3D copy_parameters = {0};
    copy_parameters.srcMemoryType = copy_parameters.dstMemoryType = MEMORY_DEVICE;
    copy_parameters.srcDevice = buffer[1];
    copy_parameters.dstDevice = buffer[buffers - 1];
    copy_parameters.WidthInBytes = words * 4;
    copy_parameters.Height = copy_parameters.Depth = 1;
    OK(cuMemcpyHtoD_v2(table, buffer, named * 8));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemsetNode(&made[0], graph, NULL, 0, &memset_parameters, gpu.context));
    OK(cuGraphAddKernelNode_v2(&made[1], graph, NULL, 0, &fill));
    OK(cuGraphAddKernelNode_v2(&batch, graph, made, 2, &mix));
    OK(cuGraphAddMemcpyNode(&copy, graph, &batch, 1, &copy_parameters, gpu.context));
    CHECK(node_count(graph, NODE_MEMSET) == 1, "%zu memsets", node_count(graph, NODE_MEMSET));
    CUgraphExec executable = instantiate(graph);
    for (uint32_t i = 0; i < 5; i++) {
        mix_plainly(2 + i % (buffers - 2), i);
        OK(cuGraphLaunch(executable, stream));
    }
    OK(cuStreamSynchronize(stream));
    contents[0] = mixed((struct contents){0, 0, memset_parameters.value}, round);
    contents[1] = contents[buffers - 1] = mixed(filled(seed), round);
    OK(cuGraphExecDestroy(executable));
    OK(cuGraphDestroy(graph));
}

/* Names other tails in the table, in the stream's order. */
static void rename_tails(CUdeviceptr table, size_t *named) {
    CUdeviceptr addresses[NAMED];
    for (size_t i = 0; i < NAMED; i++) {
        named[i] = (next_random(&random_state) % (buffers / NAMED)) * NAMED + i;
        addresses[i] = tail_of(named[i]);
    }
    OK(cuMemcpyHtoDAsync_v2(table, addresses, sizeof addresses, stream));
    OK(cuStreamSynchronize(stream));
}

/* Two small nodes, one that names a tail and one that finds others in the table, launched many times. Every now and
 * then large work comes between, the table changes, and the executable's first node is turned to another tail. */
static void replays(CUdeviceptr table, size_t launches) {
    CUgraph graph, clone;
    CUgraphNode first, second, cloned;
    uint64_t count = TAIL_WORDS, many = NAMED;
    uint32_t round = 29;
    size_t one = 0, other = buffers - 1, named[NAMED];
    CUdeviceptr at = tail_of(one), away = tail_of(other);
    void *parameters[] = {&at, &count, &round}, *batch[] = {&table, &many, &count, &round}, *away_parameters[] = {&away, &count, &round};
    CUDA_KERNEL_NODE_PARAMS mix = kernel(gpu.mix, parameters), batched = kernel(gpu.batched_mix, batch), got = {0};
    CUDA_KERNEL_NODE_PARAMS mix_away = kernel(gpu.mix, away_parameters);
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddKernelNode_v2(&first, graph, NULL, 0, &mix));
    OK(cuGraphAddKernelNode_v2(&second, graph, &first, 1, &batched));
    OK(cuGraphKernelNodeGetParams_v2(first, &got));
    CHECK(*(CUdeviceptr *)got.kernelParams[0] == tail_of(one), "the node names %llx", *(CUdeviceptr *)got.kernelParams[0]);
    OK(cuGraphClone(&clone, graph));
    OK(cuGraphNodeFindInClone(&cloned, first, clone));
    OK(cuGraphKernelNodeSetParams_v2(cloned, &mix_away));
    CUgraphExec executable = instantiate(graph), away_executable = instantiate(clone);
    rename_tails(table, named);
    for (size_t i = 0; i < launches; i++) {
        if (i % 100 == 50) mix_plainly(next_random(&random_state) % buffers, (uint32_t)i);
        if (i % 200 == 125) rename_tails(table, named);
        if (i % 250 == 200) {
            one = next_random(&random_state) % buffers;
            at = tail_of(one);
            OK(cuGraphExecKernelNodeSetParams_v2(executable, first, &mix));
        }
        size_t b = i % 10 ? one : other;
        OK(cuGraphLaunch(i % 10 ? executable : away_executable, stream));
        tail[b] = mixed(tail[b], round);
        for (size_t k = 0; k < NAMED; k++) tail[named[k]] = mixed(tail[named[k]], round);
    }
    OK(cuStreamSynchronize(stream));
    OK(cuGraphExecDestroy(executable));
    OK(cuGraphExecDestroy(away_executable));
    OK(cuGraphDestroy(clone));
    OK(cuGraphDestroy(graph));
}

int main(int argc, char **argv) {
    buffers = argument(argc, argv, 1, 12);
    size_t bytes = argument(argc, argv, 2, 32) * MIB, launches = argument(argc, argv, 3, 1000);
    random_state = seed_argument(argc, argv, 4);
    busy = argument(argc, argv, 5, 0);
    words = bytes / 4 - TAIL_WORDS;
    CHECK(buffers >= 4 && bytes > 0, "nothing to do");
    start_gpu();
    size_t before = settled_free_bytes();
    CUdeviceptr table;
    buffer = malloc(buffers * sizeof *buffer);
    contents = malloc(buffers * sizeof *contents);
    tail = malloc(buffers * sizeof *tail);
    CHECK(buffer && contents && tail, "no memory");
    /* Blocking streams: while one is captured, nothing may be put on the default stream, by nobody. */
    OK(cuStreamCreate(&stream, 0));
    OK(cuStreamCreate(&side, 0));
    OK(cuEventCreate(&forked, EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&joined, EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&table, 64));
    for (size_t b = 0; b < buffers; b++) {
        OK(cuMemAlloc_v2(&buffer[b], bytes));
        contents[b] = filled((uint32_t)b);
        tail[b] = filled((uint32_t)(500 + b));
        run_fill_on(stream, buffer[b], words, contents[b].seed);
        /* On the default stream, which waits for these two and they for it. */
        run_fill(tail_of(b), TAIL_WORDS, tail[b].seed);
    }
    OK(cuStreamSynchronize(stream));
    sweeps();
    by_hand(table);
    replays(table, launches);
    for (size_t b = 0; b < buffers; b++) {
        check_contents(buffer[b], words, contents[b], b);
        check_contents(tail_of(b), TAIL_WORDS, tail[b], 1000 + b);
        OK(cuMemFree_v2(buffer[b]));
    }
    OK(cuMemFree_v2(table));
    OK(cuEventDestroy_v2(forked));
    OK(cuEventDestroy_v2(joined));
    OK(cuStreamDestroy_v2(side));
    OK(cuStreamDestroy_v2(stream));
    check_free_is(before);
    printf("graphs: ok, %zu x %zu MiB, %zu launches\n", buffers, bytes / MIB, launches);
    return 0;
}
