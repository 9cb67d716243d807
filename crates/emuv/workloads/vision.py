"""Images: ResNet-50 training, and the noise predictor of Stable Diffusion."""

import math

import torch
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear, Module, ModuleList
from torch.nn.functional import cross_entropy, gelu, interpolate, scaled_dot_product_attention, silu

from harness import MIB, Skipped, Workload


def resnet50(setting):
    """Training in fp32 on synthetic images; most of its memory is activations."""
    try:
        import torchvision
    except ImportError:
        raise Skipped("torchvision is not installed: pip install torchvision") from None
    side = 32 if setting.tiny else 224
    batch = setting.count(84 * MIB, 300 * MIB, least=2, tiny=4)
    model = torchvision.models.resnet50(weights=None).to(setting.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = setting.normal(batch, 3, side, side, dtype=torch.float32)
    labels = torch.randint(0, 1000, (batch,), device=setting.device, generator=setting.generator)

    def step(_):
        optimizer.zero_grad(set_to_none=True)
        with setting.saving():
            loss = cross_entropy(model(images), labels)
        setting.mark()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Workload(step, {"batch": batch}, stack=True, final=lambda: model.state_dict().values())


class Residual(Module):
    def __init__(self, inputs, outputs, time):
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(32, inputs), Conv2d(inputs, outputs, 3, padding=1)
        self.time = Linear(time, outputs)
        self.norm2, self.conv2 = GroupNorm(32, outputs), Conv2d(outputs, outputs, 3, padding=1)
        self.skip = Conv2d(inputs, outputs, 1) if inputs != outputs else torch.nn.Identity()

    def forward(self, x, time):
        h = self.conv1(silu(self.norm1(x))) + self.time(silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(silu(self.norm2(h)))


class Attending(Module):
    """Attention to itself or to a text."""

    def __init__(self, width, context):
        super().__init__()
        self.heads = 8
        self.norm = LayerNorm(width)
        self.q, self.kv = Linear(width, width, bias=False), Linear(context, 2 * width, bias=False)
        self.out = Linear(width, width)

    def forward(self, x, text=None):
        y = self.norm(x)
        k, v = self.kv(y if text is None else text).chunk(2, -1)

        def heads(z):
            return z.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = scaled_dot_product_attention(heads(self.q(y)), heads(k), heads(v))
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Transformer(Module):
    def __init__(self, width, context):
        super().__init__()
        self.norm, self.into = GroupNorm(32, width), Conv2d(width, width, 1)
        self.itself, self.text = Attending(width, width), Attending(width, context)
        self.norm2, self.wide, self.narrow = LayerNorm(width), Linear(width, 8 * width), Linear(4 * width, width)
        self.back = Conv2d(width, width, 1)

    def forward(self, image, text):
        x = self.into(self.norm(image)).flatten(2).transpose(1, 2)
        x = self.text(self.itself(x), text)
        value, gate = self.wide(self.norm2(x)).chunk(2, -1)
        x = x + self.narrow(value * gelu(gate))
        return image + self.back(x.transpose(1, 2).unflatten(2, image.shape[2:]))


class Stage(Module):
    """A residual block, and attention where the image is small enough."""

    def __init__(self, inputs, outputs, time, context, attends):
        super().__init__()
        self.residual = Residual(inputs, outputs, time)
        self.transformer = Transformer(outputs, context) if attends else None

    def forward(self, x, time, text):
        x = self.residual(x, time)
        return self.transformer(x, text) if self.transformer else x


class UNet(Module):
    """The shape of Stable Diffusion 1's: four levels, two blocks down and three up in each, skips between them."""

    def __init__(self, base, context):
        super().__init__()
        widths, time = [base, 2 * base, 4 * base, 4 * base], 4 * base
        self.base = base
        self.time1, self.time2 = Linear(base, time), Linear(time, time)
        self.first = Conv2d(4, base, 3, padding=1)
        self.down, self.smaller, kept, width = ModuleList(), ModuleList(), [base], base
        for level, wanted in enumerate(widths):
            for _ in range(2):
                self.down.append(Stage(width, wanted, time, context, level < 3))
                width = wanted
                kept.append(width)
            if level < 3:
                self.smaller.append(Conv2d(width, width, 3, stride=2, padding=1))
                kept.append(width)
        self.middle = Stage(width, width, time, context, True)
        self.middle2 = Residual(width, width, time)
        self.up, self.larger = ModuleList(), ModuleList()
        for level, wanted in reversed(list(enumerate(widths))):
            for _ in range(3):
                self.up.append(Stage(width + kept.pop(), wanted, time, context, level < 3))
                width = wanted
            if level > 0:
                self.larger.append(Conv2d(width, width, 3, padding=1))
        self.norm, self.last = GroupNorm(32, width), Conv2d(width, 4, 3, padding=1)

    def forward(self, x, moment, text):
        half = self.base // 2
        speeds = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        waves = (moment * speeds)[None]
        time = self.time2(silu(self.time1(torch.cat([waves.cos(), waves.sin()], -1).to(x.dtype))))
        x = self.first(x)
        kept = [x]
        for level in range(4):
            for stage in self.down[2 * level : 2 * level + 2]:
                x = stage(x, time, text)
                kept.append(x)
            if level < 3:
                x = self.smaller[level](x)
                kept.append(x)
        x = self.middle2(self.middle(x, time, text), time)
        for level in range(4):
            for stage in self.up[3 * level : 3 * level + 3]:
                x = stage(torch.cat([x, kept.pop()], 1), time, text)
            if level < 3:
                x = self.larger[level](interpolate(x, scale_factor=2))
        return self.last(silu(self.norm(x)))


def unet(setting):
    """Twenty steps of removing noise from a batch of images would be twenty iterations of this."""
    base, side, context = (32, 16, 32) if setting.tiny else (192, 64, 768)
    with torch.device("meta"):
        model = UNet(base, context).to(setting.half)
    model = model.to_empty(device=setting.device).eval().requires_grad_(False)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.02
        parameter.normal_(0, spread, generator=setting.generator)
    for module in model.modules():
        if isinstance(module, GroupNorm | LayerNorm):
            module.weight.fill_(1.0)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    model = setting.place(model, setting.offload_budget or 0)
    # What one more image adds to the most that is live at once.
    batch = setting.count(38 * MIB, weights + 32 * MIB, tiny=2)
    image = setting.normal(batch, 4, side, side)
    text = setting.normal(batch, 8 if setting.tiny else 77, context)

    def step(iteration):
        with torch.inference_mode():
            noise = model(image, 1000.0 - 50 * (iteration % 20), text)
            # The scheduler's part: the image for the next step, kept at the same size.
            image.mul_(0.9).add_(noise / (1 + noise.abs().amax()), alpha=0.3)
            return image[0]

    return Workload(step, {"batch": batch}, clean_bytes=weights)

