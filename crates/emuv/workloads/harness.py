"""What the workloads share: sizes, random weights, timing without gaps, exact digests, framework offload.

A workload is a function of a `Setting` that returns a `Workload`: a step that is repeated, always the same work on
different data, and what the bound of its time is computed from (crates/emuv/src/bench/bound.rs).
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import time

import torch

GIB, MIB = 1 << 30, 1 << 20
# The fractional part of the golden ratio, as a signed 64-bit number: odd, its bits spread evenly.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


class Skipped(Exception):
    """The workload, or the mode, does not exist on this machine; the text says why and what to do."""


@dataclasses.dataclass
class Workload:
    """What is measured.

    step            step(i) enqueues iteration i and returns a small tensor that all of its work led to
    scale           what the size was chosen by: {"layers": 10} or {"batch": 45}
    passes          how often an iteration goes through all of its memory
    pass_bytes      or: the bytes that each of those passes touches, where they differ
    clean_bytes     bytes that no iteration changes: their copy in RAM stays good
    stack           activations made by the forward part are used up by the backward part in reverse
    sweep_bytes     bytes that the iteration's last part (`mark_sweep`) goes through, each of them once
    random_bytes    bytes of which each iteration touches `touched_bytes`, drawn anew and evenly
    final           final() gives tensors whose exact bytes are hashed after the last iteration
    """

    step: object
    scale: dict
    passes: int = 1
    pass_bytes: list = None
    clean_bytes: int = 0
    stack: bool = False
    sweep_bytes: int = 0
    random_bytes: int = 0
    touched_bytes: int = 0
    final: object = None


class Setting:
    """What a workload is made from."""

    def __init__(self, options):
        self.device = torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.tiny = options.tiny
        self.seed = options.seed
        self.peak_bytes = options.peak
        self.scale = options.scale
        self.offload = options.offload
        self.offload_budget = options.offload_budget
        # The type that models are run in. CPUs are faster at bfloat16 than at float16.
        self.half = torch.float16 if self.cuda else torch.bfloat16
        self.generator = torch.Generator(device=self.device).manual_seed(options.seed)
        self.scale_chosen = options.scale
        self.resident_bytes = 0
        self._middle = self._sweep = None

    def normal(self, *shape, std=1.0, dtype=None):
        """Random numbers, made where they stay: no copy in another type, none on the host."""
        empty = torch.empty(shape, dtype=dtype or self.half, device=self.device)
        return empty.normal_(0, std, generator=self.generator)

    def linear(self, inputs, outputs, dtype=None):
        """A linear layer with random weights."""
        layer = torch.nn.utils.skip_init(
            torch.nn.Linear, inputs, outputs, bias=False, device=self.device, dtype=dtype or self.half
        )
        with torch.no_grad():
            layer.weight.normal_(0, inputs**-0.5, generator=self.generator)
        return layer

    def count(self, unit_bytes, fixed_bytes=0, least=1, tiny=2):
        """How many units reach the peak that was asked for, beside what is needed anyway."""
        if self.scale is None:
            fitting = (self.peak_bytes - fixed_bytes) // unit_bytes
            self.scale_chosen = tiny if self.tiny else max(least, fitting)
        return self.scale_chosen

    def mark(self):
        """Called by a step between its forward and its backward part."""
        self._middle = now(self.cuda)

    def mark_sweep(self):
        """Called by a step where its last part begins, which goes through `sweep_bytes`."""
        self._sweep = now(self.cuda)

    def take_marks(self):
        marks = self._middle, self._sweep
        self._middle = self._sweep = None
        return marks

    def no_offload(self, why):
        """For workloads that no framework offloads."""
        if self.offload:
            raise Skipped(f"frameworks have no offload for {why}")

    def place(self, module, reserve_bytes):
        """Leaves a module that was just made on the GPU, or, when offloading, hands it to accelerate once the
        budget less `reserve_bytes` (for what is no weight) is used up."""
        if not self.offload:
            return module
        size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
        if self.resident_bytes + size + reserve_bytes <= self.offload_budget:
            self.resident_bytes += size
            return module
        try:
            from accelerate import cpu_offload
        except ImportError:
            raise Skipped("accelerate is not installed: pip install accelerate") from None
        return cpu_offload(module, execution_device=self.device)

    def saving(self):
        """Where a training step keeps what its backward part needs."""
        if self.offload:
            return torch.autograd.graph.save_on_cpu(pin_memory=self.cuda)
        return contextlib.nullcontext()


def now(cuda):
    """A moment in the stream of work."""
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start, end):
    if isinstance(start, float):
        return end - start
    return start.elapsed_time(end) / 1e3


def digest(tensor):
    """64 bits that depend on every bit of a small tensor and on where it is, computed where the tensor is: sums of
    whole numbers are the same in whatever order they are added."""
    flat = tensor.detach().reshape(-1).contiguous()
    bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]).long()
    places = torch.arange(1, bits.numel() + 1, device=bits.device)
    mixed = (bits + places * GOLDEN) * GOLDEN
    mixed = (mixed ^ (mixed >> 29)) * (2 * places + 1)
    return mixed.sum()


def sha256(tensors):
    total = hashlib.sha256()
    for tensor in tensors:
        # Without NumPy, which not every installation has.
        tensor = tensor.detach().cpu().contiguous()
        total.update(ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()))
    return total.hexdigest()


def make_deterministic(seed):
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor with NaN would add traffic that programs do not have.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):
        # Its backward pass may add up in any order.
        torch.backends.cuda.enable_cudnn_sdp(False)


def measure(setting, workload, iterations, seconds):
    """Runs the loop without a pause: iteration i lasts from the end of the one before to its own end, so nothing can
    hide in between. After `seconds` no further iteration is begun, but three are always made."""
    digests = torch.zeros(iterations, dtype=torch.int64, device=setting.device)
    setup_peak = allocated(setting)
    if setting.cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    ends, middles, sweeps = [now(setting.cuda)], [], []
    deadline = time.monotonic() + seconds
    for iteration in range(iterations):
        output = workload.step(iteration)
        digests[iteration] = digest(output)
        middle, sweep = setting.take_marks()
        middles.append(middle)
        sweeps.append(sweep)
        ends.append(now(setting.cuda))
        if iteration >= 2 and time.monotonic() > deadline:
            break
    done = len(middles)
    if setting.cuda:
        torch.cuda.synchronize()
    if output.is_floating_point() and not bool(torch.isfinite(output).all()):
        raise ArithmeticError("the output is not finite: a comparison would mean nothing")
    peak = allocated(setting)
    spans = list(zip(ends, middles, ends[1:]))
    return {
        "iterations": done,
        "seconds": [seconds_between(start, end) for start, _, end in spans],
        "forward_seconds": [seconds_between(start, middle) for start, middle, _ in spans] if middles[0] else None,
        "sweep_seconds": [seconds_between(*span) for span in zip(sweeps, ends[1:])] if sweeps[0] else None,
        "digests": [f"{value & (1 << 64) - 1:016x}" for value in digests[:done].tolist()],
        "final_sha256": sha256(workload.final()) if workload.final else None,
        "peak_allocated_bytes": peak,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if setting.cuda else None,
        "setup_peak_bytes": setup_peak,
        "scale": workload.scale,
        # With this as --scale another run is of exactly the same size.
        "scale_argument": setting.scale_chosen,
        "pass_bytes": workload.pass_bytes or [peak] * workload.passes,
        "clean_bytes": workload.clean_bytes,
        "stack": workload.stack,
        "sweep_bytes": workload.sweep_bytes,
        "random_bytes": workload.random_bytes,
        "touched_bytes": workload.touched_bytes,
    }


def allocated(setting):
    """The most that tensors took; unknown on a CPU."""
    return torch.cuda.max_memory_allocated() if setting.cuda else None
