"""Training of language models: all weights with AdamW, and adapters on frozen weights."""

import torch
from torch.nn.functional import cross_entropy, linear

from harness import GIB, MIB, Workload
from llama import TINY, VOCABULARY, Block, Shape, causal, normalised, shape_for, turns


class Model(torch.nn.Module):
    def __init__(self, setting, shape, blocks, dtype):
        super().__init__()
        self.shape = shape
        table = setting.normal(VOCABULARY, shape.hidden, std=0.02, dtype=dtype)
        self.table = torch.nn.Parameter(table)
        self.blocks = torch.nn.ModuleList(blocks)

    def forward(self, tokens):
        x = self.table[tokens]
        turn = turns(self.shape, torch.arange(tokens.shape[1], device=tokens.device), torch.bfloat16)
        for block in self.blocks:
            x = block(x, turn, causal)
        return linear(normalised(x), self.table)


def _texts(setting, batch, tokens):
    """Four batches, used in turn."""
    return torch.randint(
        0, VOCABULARY, (4, batch, tokens + 1), device=setting.device, generator=setting.generator
    )


def _trainer(setting, model, texts, optimizer):
    autocast = torch.autocast(setting.device.type, dtype=torch.bfloat16)

    def step(iteration):
        text = texts[iteration % len(texts)]
        optimizer.zero_grad(set_to_none=True)
        with setting.saving():
            with autocast:
                logits = model(text[:, :-1])
            loss = cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())
        setting.mark()
        loss.backward()
        setting.mark_sweep()
        optimizer.step()
        return loss.detach()

    return step


def finetune(setting):
    """Full fine-tuning: fp32 weights, gradients and AdamW's two moments, bfloat16 arithmetic."""
    shape = TINY if setting.tiny else Shape(1024, 2816, 16) if setting.peak_bytes < 8 * GIB else Shape(2048, 5632, 16)
    batch, tokens = (2, 16) if setting.tiny else (4, 512)
    # Sixteen bytes a weight for training, two for the copy that autocast keeps until the backward part.
    activations = batch * tokens * 26 * shape.hidden
    layers = setting.count(18 * shape.parameters + activations, 96 * MIB)
    blocks = [Block(setting, shape, torch.float32) for _ in range(layers)]
    model = Model(setting, shape, blocks, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step = _trainer(setting, model, _texts(setting, batch, tokens), optimizer)
    # AdamW goes through weights, gradients and both moments.
    sweep = sum(4 * weight.numel() * weight.element_size() for weight in model.parameters())
    return Workload(step, {"layers": layers, "batch": batch}, sweep_bytes=sweep, final=model.parameters)


class Adapted(torch.nn.Module):
    """A frozen linear layer and what is learned beside it (LoRA)."""

    def __init__(self, setting, base, rank):
        super().__init__()
        self.base = base
        outputs, inputs = base.weight.shape
        base.weight.requires_grad_(False)
        self.down = torch.nn.Parameter(setting.normal(rank, inputs, std=inputs**-0.5, dtype=torch.float32))
        self.up = torch.nn.Parameter(torch.zeros(outputs, rank, device=setting.device))

    def forward(self, x):
        return self.base(x) + linear(linear(x, self.down), self.up)


def lora(setting):
    """LoRA: rank 16 on queries and values, everything else frozen in half precision."""
    shape = shape_for(setting)
    batch, tokens = (2, 16) if setting.tiny else (2, 512)
    activations = batch * tokens * 35 * shape.hidden
    layers = setting.count(2 * shape.parameters + activations, 96 * MIB)
    blocks = []
    for _ in range(layers):
        # bfloat16: without a scaled loss, gradients in float16 would vanish.
        block = Block(setting, shape, torch.bfloat16).requires_grad_(False)
        block.attention.q = Adapted(setting, block.attention.q, 16)
        block.attention.v = Adapted(setting, block.attention.v, 16)
        blocks.append(block)
    model = Model(setting, shape, blocks, torch.bfloat16)
    model.table.requires_grad_(False)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, fused=True)
    step = _trainer(setting, model, _texts(setting, batch, tokens), optimizer)
    frozen = layers * 2 * shape.parameters
    # Forward all weights are read; backward again, and all that has been kept since.
    passes = [frozen, None]
    return Workload(step, {"layers": layers, "batch": batch}, pass_bytes=passes, clean_bytes=frozen, final=lambda: learned)
