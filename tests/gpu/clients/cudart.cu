/* A program of the CUDA runtime, to be built with nvcc -cudart static and -cudart shared; it frees all that it takes.
 *
 *   cudart --seed N
 */
#include "checks.cuh"

#include <algorithm>

namespace {

__global__ void add(unsigned *out, const unsigned *in, size_t count) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        out[i] += in[i];
}
__global__ void sample(unsigned *out, cudaTextureObject_t texture, int width, int height) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x < width && y < height) out[y * width + x] = tex2D<unsigned>(texture, x + 0.5f, y + 0.5f);
}
__device__ unsigned *stored;
__global__ void store(unsigned *pointer) { stored = pointer; }
__global__ void add_through_stored(size_t count) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        stored[i] += 5;
}

uint64_t allocate_and_fill(unsigned seed) {
    Words seen;
    for (size_t count : {size_t(1), size_t(1000), 3 * MIB + 1, 40 * MIB}) {
        unsigned *memory;
        DO(cudaMalloc(&memory, count * 4));
        fill<<<256, 256>>>(memory, count, seed);
        REQUIRE(read(memory, count) == words_of(count, seed));
        seen.push_back(read(memory + count - 1, 1)[0]);
        DO(cudaFree(memory));
    }
    return hash(seen);
}

uint64_t memory_info(unsigned) {
    size_t free_bytes, total;
    unsigned *memory;
    cudaDeviceProp properties;
    DO(cudaMemGetInfo(&free_bytes, &total));
    DO(cudaGetDeviceProperties(&properties, 0));
    REQUIRE(free_bytes > 0 && free_bytes <= total);
    REQUIRE(properties.totalGlobalMem / 50 >= (size_t)llabs((long long)(properties.totalGlobalMem - total)));
    cudaPointerAttributes attributes;
    DO(cudaMalloc(&memory, 8 * MIB));
    DO(cudaPointerGetAttributes(&attributes, memory + MIB));
    REQUIRE(attributes.type == cudaMemoryTypeDevice && attributes.devicePointer == memory + MIB);
    DO(cudaFree(memory));
    return 0;
}

uint64_t stream_ordered(unsigned seed) {
    cudaStream_t streams[3];
    Words seen;
    for (auto &stream : streams) DO(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (unsigned round = 0; round < 30; round++) {
        cudaStream_t stream = streams[round % 3];
        size_t count = (1 + round % 7) * MIB / 2 + round;
        unsigned *one, *other, last;
        DO(cudaMallocAsync(&one, count * 4, stream));
        DO(cudaMallocAsync(&other, count * 4, stream));
        fill<<<64, 256, 0, stream>>>(one, count, seed + round);
        fill<<<64, 256, 0, stream>>>(other, count, seed);
        add<<<64, 256, 0, stream>>>(one, other, count);
        DO(cudaFreeAsync(other, stream));
        DO(cudaMemcpyAsync(&last, one + count - 1, 4, cudaMemcpyDeviceToHost, stream));
        DO(cudaFreeAsync(one, stream));
        DO(cudaStreamSynchronize(stream));
        unsigned at = (unsigned)(count - 1);
        REQUIRE(last == host_mix(at + seed + round) + host_mix(at + seed));
        seen.push_back(last);
    }
    cudaMemPool_t pool;
    uint64_t reserved;
    DO(cudaDeviceSynchronize());
    DO(cudaDeviceGetDefaultMemPool(&pool, 0));
    DO(cudaMemPoolTrimTo(pool, 0));
    DO(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved));
    REQUIRE(reserved == 0);
    for (auto &stream : streams) DO(cudaStreamDestroy(stream));
    return hash(seen);
}

uint64_t own_pool(unsigned seed) {
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    cudaMemPool_t pool;
    unsigned *memory;
    uint64_t keep = UINT64_MAX, used;
    DO(cudaMemPoolCreate(&pool, &properties));
    DO(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    DO(cudaMallocFromPoolAsync((void **)&memory, 12 * MIB, pool, 0));
    fill<<<64, 256>>>(memory, 3 * MIB, seed);
    DO(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used));
    REQUIRE(used >= 12 * MIB);
    uint64_t digest = hash(read(memory, 3 * MIB));
    DO(cudaFreeAsync(memory, 0));
    DO(cudaStreamSynchronize(0));
    DO(cudaMemPoolDestroy(pool));
    return digest;
}

/* Pitched memory, there and back with other pitches, with an offset. */
uint64_t pitched(unsigned seed) {
    size_t width = 1003, height = 777, pitch, other_pitch;
    unsigned *one, *other;
    Words source = words_of(width * height, seed), back(width * height);
    DO(cudaMallocPitch((void **)&one, &pitch, width * 4, height));
    DO(cudaMallocPitch((void **)&other, &other_pitch, (width + 300) * 4, height + 5));
    DO(cudaMemcpy2D(one, pitch, source.data(), width * 4, width * 4, height, cudaMemcpyHostToDevice));
    DO(cudaMemset2D(other, other_pitch, 0x5a, (width + 300) * 4, height + 5));
    unsigned *inside = (unsigned *)((char *)other + 3 * other_pitch) + 17;
    DO(cudaMemcpy2D(inside, other_pitch, one, pitch, width * 4, height, cudaMemcpyDeviceToDevice));
    DO(cudaMemcpy2D(back.data(), width * 4, inside, other_pitch, width * 4, height, cudaMemcpyDeviceToHost));
    REQUIRE(back == source);
    REQUIRE(read(other, 1)[0] == 0x5a5a5a5a);
    DO(cudaFree(one));
    DO(cudaFree(other));
    return hash(back);
}

uint64_t volume(unsigned seed) {
    cudaExtent extent = make_cudaExtent(128 * 4, 96, 50);
    Words source = words_of(128 * 96 * 50, seed), back(source.size());
    cudaPitchedPtr memory;
    DO(cudaMalloc3D(&memory, extent));
    cudaMemcpy3DParms copy = {};
    copy.srcPtr = make_cudaPitchedPtr(source.data(), 128 * 4, 128, 96);
    copy.dstPtr = memory;
    copy.extent = extent;
    copy.kind = cudaMemcpyHostToDevice;
    DO(cudaMemcpy3D(&copy));
    cudaMemcpy3DParms home = {};
    home.srcPtr = memory;
    home.dstPtr = make_cudaPitchedPtr(back.data(), 128 * 4, 128, 96);
    home.extent = extent;
    home.kind = cudaMemcpyDeviceToHost;
    DO(cudaMemcpy3D(&home));
    REQUIRE(back == source);
    DO(cudaFree(memory.ptr));
    return hash(back);
}

uint64_t array_and_texture(unsigned seed) {
    int width = 300, height = 200;
    Words source = words_of(width * height, seed);
    cudaChannelFormatDesc format = cudaCreateChannelDesc<unsigned>();
    cudaArray_t array;
    DO(cudaMallocArray(&array, &format, width, height));
    DO(cudaMemcpy2DToArray(array, 0, 0, source.data(), width * 4, width * 4, height, cudaMemcpyHostToDevice));
    cudaResourceDesc resource = {};
    resource.resType = cudaResourceTypeArray;
    resource.res.array.array = array;
    cudaTextureDesc how = {};
    how.addressMode[0] = how.addressMode[1] = cudaAddressModeClamp;
    how.readMode = cudaReadModeElementType;
    cudaTextureObject_t texture;
    DO(cudaCreateTextureObject(&texture, &resource, &how, nullptr));
    unsigned *out;
    DO(cudaMalloc(&out, source.size() * 4));
    sample<<<dim3((width + 127) / 128, height), 128>>>(out, texture, width, height);
    REQUIRE(read(out, source.size()) == source);
    DO(cudaDestroyTextureObject(texture));
    DO(cudaFreeArray(array));
    DO(cudaFree(out));
    return hash(source);
}

/* A captured graph in which memory is allocated and freed. */
uint64_t graph_with_memory(unsigned seed) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    unsigned *out, *scratch;
    size_t count = 2 * MIB;
    DO(cudaStreamCreate(&stream));
    DO(cudaMalloc(&out, count * 4));
    DO(cudaMemset(out, 0, count * 4));
    DO(cudaDeviceSynchronize());
    DO(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    DO(cudaMallocAsync(&scratch, count * 4, stream));
    fill<<<64, 256, 0, stream>>>(scratch, count, seed);
    add<<<64, 256, 0, stream>>>(out, scratch, count);
    DO(cudaFreeAsync(scratch, stream));
    DO(cudaStreamEndCapture(stream, &graph));
    DO(cudaGraphInstantiate(&executable, graph, 0));
    for (int launch = 0; launch < 20; launch++) DO(cudaGraphLaunch(executable, stream));
    DO(cudaStreamSynchronize(stream));
    Words seen = read(out, count);
    for (size_t i = 0; i < count; i += 1001) REQUIRE(seen[i] == 20 * host_mix((unsigned)i + seed));
    DO(cudaGraphExecDestroy(executable));
    DO(cudaGraphDestroy(graph));
    DO(cudaDeviceGraphMemTrim(0));
    DO(cudaFree(out));
    DO(cudaStreamDestroy(stream));
    return hash(seen);
}

/* A pointer that a kernel has stored is followed by a later one that does not name it. */
uint64_t stored_pointer(unsigned seed) {
    unsigned *memory;
    size_t count = 8 * MIB;
    DO(cudaMalloc(&memory, count * 4));
    fill<<<64, 256>>>(memory, count, seed);
    store<<<1, 1>>>(memory);
    for (int round = 0; round < 10; round++) add_through_stored<<<64, 256>>>(count);
    Words seen = read(memory, count);
    for (size_t i = 0; i < count; i += 1001) REQUIRE(seen[i] == host_mix((unsigned)i + seed) + 50);
    DO(cudaFree(memory));
    return hash(seen);
}

uint64_t pinned_copies(unsigned seed) {
    unsigned *host, *back, *memory;
    size_t count = 16 * MIB;
    DO(cudaMallocHost(&host, count * 4));
    DO(cudaHostAlloc(&back, count * 4, cudaHostAllocMapped));
    DO(cudaMalloc(&memory, count * 4));
    Words source = words_of(count, seed);
    std::copy(source.begin(), source.end(), host);
    cudaStream_t stream;
    cudaEvent_t event;
    DO(cudaStreamCreate(&stream));
    DO(cudaEventCreate(&event));
    DO(cudaMemcpyAsync(memory, host, count * 4, cudaMemcpyHostToDevice, stream));
    DO(cudaMemcpyAsync(back, memory, count * 4, cudaMemcpyDeviceToHost, stream));
    DO(cudaEventRecord(event, stream));
    DO(cudaEventSynchronize(event));
    REQUIRE(std::equal(source.begin(), source.end(), back));
    DO(cudaEventDestroy(event));
    DO(cudaStreamDestroy(stream));
    DO(cudaFree(memory));
    DO(cudaFreeHost(host));
    DO(cudaFreeHost(back));
    return hash(source);
}

uint64_t refusals(unsigned) {
    size_t free_bytes, total;
    void *memory = nullptr;
    int on_stack = 0;
    DO(cudaMemGetInfo(&free_bytes, &total));
    REQUIRE(cudaMalloc(&memory, 2 * total) == cudaErrorMemoryAllocation);
    REQUIRE(cudaGetLastError() == cudaErrorMemoryAllocation);
    REQUIRE(cudaFree(&on_stack) == cudaErrorInvalidValue);
    (void)cudaGetLastError();
    DO(cudaFree(nullptr));
    DO(cudaMalloc(&memory, 4 * MIB));
    DO(cudaFree(memory));
    REQUIRE(cudaFree(memory) == cudaErrorInvalidValue);
    (void)cudaGetLastError();
    return 0;
}

uint64_t held_is_intact(unsigned) {
    uint64_t digest = hash(read(held, 4 * MIB));
    DO(cudaFree(held));
    return digest;
}

uint64_t device_reset(unsigned seed) {
    unsigned *memory;
    DO(cudaMalloc(&memory, 100 * MIB));
    DO(cudaDeviceReset());
    DO(cudaMalloc(&memory, 4 * MIB));
    fill<<<64, 256>>>(memory, MIB, seed);
    uint64_t digest = hash(read(memory, MIB));
    DO(cudaFree(memory));
    DO(cudaDeviceReset());
    return digest;
}

} // namespace

int main(int count, char **arguments) {
    Suite suite(count, arguments);
    RUN(hold);
    RUN(allocate_and_fill);
    RUN(memory_info);
    RUN(stream_ordered);
    RUN(own_pool);
    RUN(pitched);
    RUN(volume);
    RUN(array_and_texture);
    RUN(graph_with_memory);
    RUN(stored_pointer);
    RUN(pinned_copies);
    RUN(refusals);
    RUN(held_is_intact);
    RUN(device_reset);
    return suite.total();
}
