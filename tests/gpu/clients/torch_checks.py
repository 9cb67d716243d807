#!/usr/bin/env python3
"""What PyTorch programs do with GPU memory, for each of its allocators (PYTORCH_ALLOC_CONF says which).

The first check takes CLIENT_HOLD_MIB of memory and keeps it, so that under a VRAM budget of that size everything
after it spills; the last one looks whether it is still intact.
"""

import copy
import io
import os
import shutil
import threading

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from harness import Skip, Suite, require

DEVICE = "cuda:0"
MIB = 1 << 20
HOLD_MIB = int(os.environ.get("CLIENT_HOLD_MIB", "256"))
# A limit for the out-of-memory check, so that a plain run does not take the whole card from its neighbours.
FILL_LIMIT_MIB = 8192

held = {}


def before(seed):
    torch.manual_seed(seed)


suite = Suite(__doc__, before)


def randn(*shape, **kind):
    return torch.randn(*shape, device=DEVICE, **kind)


def states(model):
    return [parameter.detach() for parameter in model.parameters()]


def perceptron(width=512, inner=2048, layers=2):
    parts = []
    for _ in range(layers):
        parts += [nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)]
    return nn.Sequential(*parts).to(DEVICE)


def train(model, batches, lossy=F.mse_loss, autocast=None):
    """AdamW over the batches; the losses and the final weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=autocast == torch.float16)
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
            loss = lossy(model(inputs), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach().float())
    return losses, states(model)


@suite.check
def hold(seed):
    held["tensor"] = torch.randint(-(1 << 31), (1 << 31) - 1, (HOLD_MIB * MIB // 4,), dtype=torch.int32, device=DEVICE)
    held["sum"] = held["tensor"].sum(dtype=torch.int64)
    return held["sum"]


@suite.check
def totals_agree(seed):
    free, total = torch.cuda.mem_get_info()
    require(0 < free <= total, f"free {free}, total {total}")
    properties = torch.cuda.get_device_properties(0).total_memory
    require(abs(properties - total) <= total // 50, f"the properties say {properties} bytes, mem_get_info {total}")
    return None


@suite.check
def matmul_fp32(seed):
    return randn(1024, 1536) @ randn(1536, 768), torch.bmm(randn(8, 256, 128), randn(8, 128, 256))


@suite.check
def matmul_half(seed):
    results = []
    for dtype in (torch.float16, torch.bfloat16):
        results.append(randn(1024, 2048, dtype=dtype) @ randn(2048, 1024, dtype=dtype))
        results.append(F.linear(randn(64, 1024, dtype=dtype), randn(4096, 1024, dtype=dtype), randn(4096, dtype=dtype)))
    return results


@suite.check
def larger_than_vram(seed):
    numbers = torch.arange(2 * HOLD_MIB * MIB // 4, dtype=torch.int32, device=DEVICE)
    numbers.mul_(1664525).add_(1013904223)
    numbers.bitwise_xor_(numbers >> 13)
    other = numbers.flip(0)
    require(torch.equal(other.flip(0), numbers), "flipping twice is not the same")
    return other[::4099].clone(), numbers.sum(dtype=torch.int64)


@suite.check
def convolution_training(seed):
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.GroupNorm(8, 64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10),
    ).to(DEVICE)
    batches = [(randn(16, 3, 64, 64), torch.randint(0, 10, (16,), device=DEVICE)) for _ in range(4)]
    return train(model, batches, F.cross_entropy)


@suite.check
def perceptron_training(seed):
    return train(perceptron(2048, 4096), [(randn(64, 2048), randn(64, 2048)) for _ in range(3)])


@suite.check
def mixed_precision_training(seed):
    results = []
    for dtype in (torch.float16, torch.bfloat16):
        batches = [(randn(64, 512), randn(64, 512)) for _ in range(4)]
        results.append(train(perceptron(), batches, autocast=dtype))
    return results


@suite.check
def lstm_training(seed):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(64, 128, num_layers=2, batch_first=True)
            self.out = nn.Linear(128, 64)

        def forward(self, inputs):
            return self.out(self.lstm(inputs)[0])

    return train(Tagger().to(DEVICE), [(randn(8, 32, 64), randn(8, 32, 64)) for _ in range(3)])


@suite.check
def gradient_checkpointing(seed):
    model, inputs = perceptron(layers=3), randn(128, 512)
    plain = copy.deepcopy(model)
    plain(inputs).square().mean().backward()
    torch.utils.checkpoint.checkpoint_sequential(model, 3, inputs, use_reentrant=False).square().mean().backward()
    for one, other in zip(model.parameters(), plain.parameters()):
        require(torch.equal(one.grad, other.grad), "gradients differ with checkpointing")
    return [parameter.grad for parameter in model.parameters()]


@suite.check
def autograd_in_threads(seed):
    weights = randn(512, 512)
    inputs = [randn(64, 512).requires_grad_() for _ in range(4)]

    def work(tensor):
        for _ in range(5):
            (tensor @ weights).tanh().sum().backward()

    threads = [threading.Thread(target=work, args=(tensor,)) for tensor in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [tensor.grad for tensor in inputs]


@suite.check
def graph_replay(seed):
    static, weights = randn(256, 256), randn(256, 256) / 16
    output = torch.empty_like(static)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            output.copy_((static @ weights).tanh())
    torch.cuda.current_stream().wait_stream(side)
    start = static.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inner = static @ weights
        output.copy_(inner.tanh() + static * 0.5)
        static.copy_(output)
    for _ in range(100):
        graph.replay()
    expected = start
    for _ in range(100):
        expected = (expected @ weights).tanh() + expected * 0.5
    require(torch.equal(output, expected), "100 replays and 100 eager steps differ")
    return output


@suite.check
def graph_while_memory_churns(seed):
    inputs = randn(1 << 20)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        doubled = inputs * 2
        outputs = doubled + 1
    for round in range(10):
        junk = [torch.full((MIB,), float(round + part), device=DEVICE) for part in range(8)]
        graph.replay()
        require(all(float(tensor[-1]) == round + part for part, tensor in enumerate(junk)), "replay wrote elsewhere")
        del junk
        torch.cuda.empty_cache()
    require(torch.equal(outputs, inputs * 2 + 1), "the replay computed something else")
    return outputs


@suite.check
def graphed_callables(seed):
    model = perceptron(256, 512)
    eager = copy.deepcopy(model)
    sample = randn(32, 256).requires_grad_()
    graphed = torch.cuda.make_graphed_callables(model, (sample,))
    results = []
    for _ in range(5):
        inputs = randn(32, 256)
        one, other = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
        graphed(one).square().sum().backward()
        eager(other).square().sum().backward()
        require(torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-3), "graphed and eager gradients differ")
        results.append(one.grad)
    return results


@suite.close
def compiled_perceptron(seed):
    if not (shutil.which("gcc") or shutil.which("cc")):
        raise Skip("no C compiler")
    model, inputs = perceptron(256, 512), randn(64, 256)
    compiled = torch.compile(copy.deepcopy(model))
    compiled(inputs).square().mean().backward()
    model(inputs).square().mean().backward()
    for one, other in zip(compiled.parameters(), model.parameters()):
        require(torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), "compiled and eager gradients differ")


@suite.check
def side_streams(seed):
    sources = [randn(1 << 20) for _ in range(4)]
    streams = [torch.cuda.Stream() for _ in range(4)]
    ready = torch.cuda.Event()
    ready.record()
    partial, events = [], []
    for source, stream in zip(sources, streams):
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            result = source
            for _ in range(10):
                result = torch.sin(result) + source
            event = torch.cuda.Event()
            event.record()
            partial.append(result)
            events.append(event)
    for result, event in zip(partial, events):
        torch.cuda.current_stream().wait_event(event)
        result.record_stream(torch.cuda.current_stream())
    return torch.stack(partial).sum(0)


@suite.check
def freed_across_streams(seed):
    """A tensor freed while another stream still reads it must not be given to a writer."""
    side = torch.cuda.Stream()
    sums = []
    for round in range(20):
        tensor = torch.full((4 * MIB,), round, dtype=torch.int32, device=DEVICE)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            tensor.record_stream(side)
            for _ in range(5):
                total = tensor.sum(dtype=torch.int64)
            sums.append(total)
        del tensor
        torch.full((4 * MIB,), -1, dtype=torch.int32, device=DEVICE)
    torch.cuda.synchronize()
    require([int(total) for total in sums] == [round * 4 * MIB for round in range(20)], "a freed tensor was overwritten")


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return torch.full((3, 64, 64), float(index)), index


@suite.check
def dataloader_pinned(seed):
    loader = torch.utils.data.DataLoader(Numbers(), batch_size=8, num_workers=2, pin_memory=True)
    total = torch.zeros(3, 64, 64, device=DEVICE)
    for images, labels in loader:
        require(images.is_pinned(), "the batch is not pinned")
        total += (images.to(DEVICE, non_blocking=True) * labels.to(DEVICE, non_blocking=True).view(-1, 1, 1, 1)).sum(0)
    require(float(total[0, 0, 0]) == sum(index * index for index in range(64)), "wrong sum")
    return total


@suite.check
def pinned_copies(seed):
    source = torch.randint(0, 1 << 30, (16 * MIB,), dtype=torch.int32).pin_memory()
    back = torch.empty_like(source).pin_memory()
    upload, download = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(3):
        with torch.cuda.stream(upload):
            on_gpu = source.to(DEVICE, non_blocking=True)
        download.wait_stream(upload)
        with torch.cuda.stream(download):
            on_gpu.record_stream(download)
            back.copy_(on_gpu, non_blocking=True)
        download.synchronize()
        require(torch.equal(source, back), "the round trip changed the data")
        back.zero_()
    return source


@suite.check
def pageable_and_strided_copies(seed):
    source = torch.randint(0, 255, (513, 1025, 7), dtype=torch.uint8)
    on_gpu = source.to(DEVICE)
    view = on_gpu[3:500:3, ::2].transpose(0, 1)
    require(torch.equal(view.cpu(), source[3:500:3, ::2].transpose(0, 1)), "a strided copy differs")
    on_gpu[::2, 5:, 3] = 9
    other = torch.empty(1025, 513, 7, dtype=torch.uint8, device=DEVICE).copy_(on_gpu.transpose(0, 1))
    return on_gpu, other


@suite.check
def empty_cache_reallocate(seed):
    kept = randn(MIB)
    before = kept.clone().cpu()
    for size_mib in (1, 3, 20, 64, 130, 20, 3, 1):
        parts = [torch.full((size_mib * MIB,), part, dtype=torch.uint8, device=DEVICE) for part in range(4)]
        require(all(bool((tensor == part).all()) for part, tensor in enumerate(parts)), f"{size_mib} MiB parts overlap")
        del parts
        torch.cuda.empty_cache()
    require(torch.equal(kept.cpu(), before), "a live tensor changed")
    return kept


@suite.check
def memory_statistics(seed):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    first = torch.cuda.memory_allocated()
    tensor = torch.zeros(64 * MIB, dtype=torch.uint8, device=DEVICE)
    require(torch.cuda.memory_allocated() >= first + 64 * MIB, "a new tensor is not counted")
    del tensor
    torch.cuda.synchronize()
    require(torch.cuda.memory_allocated() == first, "a freed tensor is still counted")
    peak = torch.cuda.max_memory_allocated()
    require(first + 64 * MIB <= peak <= first + 128 * MIB, f"peak {peak} after {first}")
    stats = torch.cuda.memory_stats()
    require(stats["allocated_bytes.all.peak"] == peak, "memory_stats and max_memory_allocated differ")
    require(stats["reserved_bytes.all.current"] >= first, "less reserved than allocated")


@suite.check
def out_of_memory(seed):
    # What is held already counts as well.
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    limit = min(total, FILL_LIMIT_MIB * MIB)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (limit + torch.cuda.memory_reserved()) / total))
    parts, kept = [], []
    try:
        for part in range(1000):
            parts.append(torch.full((limit // 16,), part % 251, dtype=torch.uint8, device=DEVICE))
        raise AssertionError("1000 sixteenths of the limit fitted")
    except torch.OutOfMemoryError:
        kept = [len(parts), all(bool((tensor[::4097] == part).all()) for part, tensor in enumerate(parts))]
    finally:
        parts.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    require(8 <= kept[0] <= 16, f"{kept[0]} sixteenths of the memory fitted")
    require(kept[1], "what was allocated before the refusal was damaged")
    try:
        torch.empty(2 * total, dtype=torch.uint8, device=DEVICE)
        raise AssertionError("twice the memory was given")
    except torch.OutOfMemoryError:
        return randn(MIB) * 2


@suite.check
def embedding_gather_scatter(seed):
    table = nn.Embedding(50_000, 256).to(DEVICE)
    tokens = torch.randint(0, 50_000, (32, 64), device=DEVICE)
    table(tokens).square().sum().backward()
    index = torch.randint(0, 1000, (4096, 64), device=DEVICE)
    source = randn(1000, 64)
    gathered = source.gather(0, index)
    scattered = torch.zeros_like(source).scatter(0, index.argsort(0)[:1000] % 1000, 1.0)
    added = torch.zeros(1000, 64, device=DEVICE).index_add(0, index[:, 0], gathered)
    return table.weight.grad, gathered, scattered, added, gathered[index[:, 0] % 7 == 0]


@suite.check
def sorting(seed):
    values = torch.randint(0, 1 << 20, (3 * MIB,), device=DEVICE)
    ordered, order = values.sort(stable=True)
    require(torch.equal(values[order], ordered), "the order does not sort")
    top = randn(64, 10_000).topk(100)
    return ordered, order, top.values, values.unique(return_counts=True), values.view(3, -1).cumsum(1), values.nonzero()


@suite.check
def fourier(seed):
    image = randn(4, 512, 512)
    spectrum = torch.fft.rfft2(image)
    require(torch.allclose(torch.fft.irfft2(spectrum, s=(512, 512)), image, atol=1e-4), "the inverse differs")
    return spectrum, torch.fft.fft(randn(3, 10_007, dtype=torch.complex64))


@suite.check
def linear_algebra(seed):
    square = randn(192, 192, dtype=torch.float64) + 200 * torch.eye(192, device=DEVICE, dtype=torch.float64)
    right = randn(192, 8, dtype=torch.float64)
    solved = torch.linalg.solve(square, right)
    require(torch.allclose(square @ solved, right), "solve is wrong")
    left, values, rights = torch.linalg.svd(randn(160, 96, dtype=torch.float64))
    positive = square @ square.T
    return solved, values, torch.linalg.cholesky(positive), torch.linalg.qr(square)[1], torch.linalg.eigvalsh(positive)


@suite.check
def attention(seed):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    results = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        query, key, value = (randn(2, 8, 256, 64, dtype=torch.float16).requires_grad_() for _ in range(3))
        with sdpa_kernel(backend):
            output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        results.append(output)
        if backend == SDPBackend.MATH:
            output.square().sum().backward()
            results += [query.grad, key.grad, value.grad]
    return results


@suite.check
def sparse_matrix(seed):
    dense = randn(2048, 2048) * (torch.rand(2048, 2048, device=DEVICE) < 0.01)
    right = randn(2048, 64)
    # cuSPARSE may add in any order.
    product = torch.sparse.mm(dense.to_sparse_csr(), right)
    require(torch.allclose(product, dense @ right, rtol=1e-3, atol=1e-3), "the sparse product is wrong")
    return dense.to_sparse().coalesce().values(), dense.to_sparse_csr().col_indices()


@suite.check
def random_numbers(seed):
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    state = generator.get_state()
    first = torch.rand(MIB, device=DEVICE, generator=generator)
    generator.set_state(state)
    require(torch.equal(first, torch.rand(MIB, device=DEVICE, generator=generator)), "the state does not repeat")
    return first, torch.randperm(100_000, device=DEVICE), F.dropout(torch.ones(MIB, device=DEVICE), 0.3)


@suite.check
def save_and_load(seed):
    model = perceptron()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = perceptron()
    other.load_state_dict(torch.load(file, map_location=DEVICE, weights_only=True))
    return states(other)


def sum_of(tensor, answer):
    answer.send(int(tensor.sum(dtype=torch.int64)))
    tensor.add_(1)
    torch.cuda.synchronize()
    answer.close()


@suite.check
def tensor_sent_to_a_child(seed):
    """Through CUDA's legacy interprocess handles (or, with expandable segments, file descriptors)."""
    context = torch.multiprocessing.get_context("spawn")
    tensor = torch.randint(0, 1000, (4 * MIB,), dtype=torch.int32, device=DEVICE)
    copied = tensor.clone()
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=sum_of, args=(tensor, there))
    child.start()
    there.close()
    try:
        require(here.poll(40), "the child did not answer")
        require(here.recv() == int(copied.sum(dtype=torch.int64)), "the child saw other data")
    finally:
        child.join(20)
        child.kill()
    require(torch.equal(tensor, copied + 1), "the child's writing is not seen")
    return tensor


@suite.check
def held_is_intact(seed):
    require(int(held["tensor"].sum(dtype=torch.int64)) == int(held["sum"]), "the tensor held from the start has changed")
    return held["tensor"]


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    suite.main()
