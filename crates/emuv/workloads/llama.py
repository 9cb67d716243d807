"""Language models in the shape of LLaMA: reading a prompt, generating, growing a cache, routed experts.

Random weights in half precision. What a layer weighs, what its attention reads and what its kernels look like are those
of the real thing; what it says is not.
"""

import dataclasses

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from harness import GIB, MIB, Workload

VOCABULARY = 1024


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a layer."""

    hidden: int
    inner: int
    heads: int

    @property
    def parameters(self):
        return 4 * self.hidden**2 + 3 * self.hidden * self.inner

    @property
    def head(self):
        return self.hidden // self.heads


TINY = Shape(64, 176, 2)
SMALL = Shape(2048, 5632, 16)
LARGE = Shape(4096, 11008, 32)


def shape_for(setting):
    """LLaMA-7B's layers where at least some of them fit, TinyLlama's otherwise."""
    if setting.tiny:
        return TINY
    return LARGE if setting.peak_bytes >= 3 * GIB else SMALL


def normalised(x):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def turns(shape, positions, dtype):
    """Rotary embedding: cosine and sine of the angles by which pairs are turned at these positions."""
    half = shape.head // 2
    speeds = 10000 ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angles = positions.float()[:, None] * speeds
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(x, turn):
    cos, sin = turn
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)


class Attention(torch.nn.Module):
    def __init__(self, setting, shape, dtype=None):
        super().__init__()
        self.shape = shape
        for name in ("q", "k", "v", "o"):
            setattr(self, name, setting.linear(shape.hidden, shape.hidden, dtype))

    def forward(self, x, turn, attend):
        """`attend(q, k, v)` has [batch, heads, tokens, head] of each and decides what is looked at."""
        batch, tokens, _ = x.shape

        def heads(y):
            return y.view(batch, tokens, self.shape.heads, self.shape.head).transpose(1, 2)

        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        mixed = attend(rotated(q, turn), rotated(k, turn), v)
        return self.o(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Gated(torch.nn.Module):
    def __init__(self, setting, hidden, inner, dtype=None):
        super().__init__()
        self.gate, self.up = (setting.linear(hidden, inner, dtype) for _ in range(2))
        self.down = setting.linear(inner, hidden, dtype)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


class Block(torch.nn.Module):
    def __init__(self, setting, shape, dtype=None):
        super().__init__()
        self.attention = Attention(setting, shape, dtype)
        self.gated = Gated(setting, shape.hidden, shape.inner, dtype)

    def forward(self, x, turn, attend):
        x = x + self.attention(normalised(x), turn, attend)
        return x + self.gated(normalised(x))


def causal(q, k, v):
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def everything(q, k, v):
    return scaled_dot_product_attention(q, k, v)


def prefill(setting, tokens):
    """Reads a prompt: every weight is used for all of its tokens."""
    shape = shape_for(setting)
    tokens = 16 if setting.tiny else tokens
    # Two gated halves and their product, the stream and two of its kind, in half precision.
    working = tokens * (3 * 2 * shape.inner + 3 * 2 * shape.hidden) + 16 * MIB
    count = setting.count(2 * shape.parameters, working)
    blocks = [setting.place(Block(setting, shape), working) for _ in range(count)]
    table = setting.normal(VOCABULARY, shape.hidden)
    prompt = torch.randint(0, VOCABULARY, (1, tokens), device=setting.device, generator=setting.generator)
    turn = turns(shape, torch.arange(tokens, device=setting.device), setting.half)

    def step(iteration):
        with torch.inference_mode():
            x = table[(prompt + iteration) % VOCABULARY]
            for block in blocks:
                x = block(x, turn, causal)
            return normalised(x[:, -1])

    weights = count * 2 * shape.parameters
    return Workload(step, {"layers": count, "tokens": tokens}, clean_bytes=weights)


def decode(setting, batch):
    """Generates one token for each sequence: every weight and the whole cache are read once."""
    shape = shape_for(setting)
    context = 16 if setting.tiny else 1024
    cache_bytes = 2 * 2 * batch * context * shape.hidden
    working = 64 * MIB + 2 * VOCABULARY * shape.hidden * 2
    count = setting.count(2 * shape.parameters + cache_bytes, working)
    blocks, caches = [], []
    for _ in range(count):
        blocks.append(setting.place(Block(setting, shape), working + count * cache_bytes))
        caches.append([setting.normal(batch, shape.heads, context, shape.head) for _ in range(2)])
    table = setting.normal(VOCABULARY, shape.hidden)
    tokens = torch.randint(0, VOCABULARY, (batch,), device=setting.device, generator=setting.generator)

    def step(iteration):
        nonlocal tokens
        # The cache is full: a new token takes the oldest one's place, so that every iteration is alike.
        place = iteration % context
        with torch.inference_mode():
            turn = turns(shape, torch.full((1,), iteration, device=setting.device), setting.half)
            x = table[tokens][:, None]
            for block, (keys, values) in zip(blocks, caches):

                def attend(q, k, v, keys=keys, values=values):
                    keys[:, :, place : place + 1] = k
                    values[:, :, place : place + 1] = v
                    return everything(q, keys, values)

                x = block(x, turn, attend)
            x = normalised(x[:, 0])
            tokens = linear(x, table).argmax(-1)
            return x

    weights = count * 2 * shape.parameters
    return Workload(step, {"layers": count, "batch": batch}, clean_bytes=weights)


def kv_growth(setting):
    """Sequences that grow: a cache that is made longer by concatenation, block by block, and then dropped."""
    setting.no_offload("a cache that grows")
    shape = shape_for(setting)
    batch, steps = (2, 4) if setting.tiny else (16, 16)
    layers = 2 if setting.tiny else max(1, setting.peak_bytes // 4 // (2 * shape.parameters))
    weights = layers * 2 * shape.parameters
    # One block of tokens for all sequences, in all layers; while a layer's keys are made longer there are two of them.
    token_bytes = layers * 2 * 2 * batch * shape.hidden
    block_bytes = steps * token_bytes + token_bytes * steps // (2 * layers)
    block = setting.count(block_bytes, weights + setting.peak_bytes // 16, tiny=4)
    blocks = [Block(setting, shape) for _ in range(layers)]
    inputs = setting.normal(batch, block, shape.hidden)

    def grow(caches, layer):
        def attend(q, k, v):
            if layer in caches:
                keys, values = caches[layer]
                k = torch.cat([keys, k], 2)
                v = torch.cat([values, v], 2)
            caches[layer] = (k, v)
            return everything(q, k, v)

        return attend

    def step(iteration):
        with torch.inference_mode():
            caches, x = {}, inputs.roll(iteration, 1)
            for part in range(steps):
                positions = torch.arange(part * block, (part + 1) * block, device=setting.device)
                turn = turns(shape, positions, setting.half)
                for layer, model in enumerate(blocks):
                    x = model(x, turn, grow(caches, layer))
                x = normalised(x)
            return x[:, -1]

    # What there is before a step is all touched in it.
    passes = [weights + part * block * token_bytes for part in range(1, steps)]
    return Workload(
        step, {"layers": layers, "tokens": steps * block}, pass_bytes=passes, clean_bytes=weights
    )


class Experts(torch.nn.Module):
    def __init__(self, setting, hidden, inner, count):
        super().__init__()
        self.router = setting.linear(hidden, count)
        self.experts = torch.nn.ModuleList(Gated(setting, hidden, inner) for _ in range(count))

    def forward(self, x, noise):
        # The host must know which experts to start, as in every eager implementation.
        scores, chosen = torch.topk(0.01 * self.router(x).float() + noise, 2)
        shares = scores.softmax(-1).to(x.dtype)[0, 0]
        return sum(shares[n] * self.experts[expert](x) for n, expert in enumerate(chosen[0, 0].tolist()))


def moe(setting):
    """Generates one token with a mixture of experts, two of sixteen a layer: which ones nobody can foresee."""
    hidden, inner, heads = (64, 96, 2) if setting.tiny else (2048, 2816, 16)
    experts, context = 16, 16 if setting.tiny else 512
    shape = Shape(hidden, inner, heads)
    expert_bytes = 2 * 3 * hidden * inner
    cache_bytes = 2 * 2 * context * hidden
    layer_bytes = experts * expert_bytes + 2 * 4 * hidden**2 + cache_bytes
    working = 48 * MIB
    count = setting.count(layer_bytes, working)
    layers = []
    for _ in range(count):
        attention = setting.place(Attention(setting, shape), working)
        routed = setting.place(Experts(setting, hidden, inner, experts), working + count * cache_bytes)
        layers.append((attention, routed, [setting.normal(1, heads, context, shape.head) for _ in range(2)]))
    start = setting.normal(1, 1, hidden)

    def step(iteration):
        place = iteration % context
        with torch.inference_mode():
            turn = turns(shape, torch.full((1,), iteration, device=setting.device), setting.half)
            x = start * (1 + iteration % 7)
            for attention, routed, (keys, values) in layers:

                def attend(q, k, v, keys=keys, values=values):
                    keys[:, :, place : place + 1] = k
                    values[:, :, place : place + 1] = v
                    return everything(q, keys, values)

                x = x + attention(normalised(x), turn, attend)
                noise = torch.rand(experts, device=setting.device, generator=setting.generator)
                x = x + routed(normalised(x), noise)
            return normalised(x[:, 0])

    weights = count * (experts * expert_bytes + 2 * 4 * hidden**2)
    return Workload(
        step,
        {"layers": count, "experts": experts},
        clean_bytes=weights,
        random_bytes=count * experts * expert_bytes,
        touched_bytes=count * 2 * expert_bytes,
    )
