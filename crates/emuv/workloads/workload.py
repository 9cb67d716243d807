#!/usr/bin/env python3
"""Runs one workload of the benchmark and prints one line of JSON.

  workload.py NAME [--peak 4G] [--iterations 10] [--seed 1] [--offload --offload-budget 2G]
  workload.py NAME --device cpu --tiny      tries it without a GPU
  emuv run --vram 2G --ram 8G --policy torture:7 -- python3 workload.py NAME --iterations 4
                                            must print the digests of the plain run with the same --seed and --peak
  workload.py --list                        names and what they do
  workload.py --check                       what this Python has, as JSON

The line has: seconds per iteration (CUDA events, without gaps; the second half counts: the first is warm-up), a
digest of every iteration's exact output (equal digests: the same bits), the most memory that tensors took and that
PyTorch reserved, and what the bound is computed from (harness.py). Exit code 0; 3 out of memory; 4 skipped, "skipped"
says why; 1 another error, "error" says which.
"""

import argparse
import json
import os
import sys

OUT_OF_MEMORY, SKIPPED = 3, 4

# name: (file, function, arguments, how it is described)
WORKLOADS = {
    "cyclic": ("loops", "cyclic", {}, "buffers read and written in turn"),
    "palindromic": ("loops", "palindromic", {}, "the same there and back"),
    "gemm": ("loops", "gemm", {}, "an activation times many matrices"),
    "gather": ("loops", "gather", {}, "random rows of a large table"),
    "resnet50": ("vision", "resnet50", {}, "ResNet-50 training (torchvision), fp32"),
    "unet": ("vision", "unet", {}, "Stable-Diffusion-shaped UNet, fp16 inference"),
    "prefill-512": ("llama", "prefill", {"tokens": 512}, "LLaMA-shaped, reading 512 tokens"),
    "prefill-2k": ("llama", "prefill", {"tokens": 2048}, "LLaMA-shaped, reading 2,048 tokens"),
    "prefill-8k": ("llama", "prefill", {"tokens": 8192}, "LLaMA-shaped, reading 8,192 tokens"),
    "decode-1": ("llama", "decode", {"batch": 1}, "LLaMA-shaped, one token for one sequence"),
    "decode-16": ("llama", "decode", {"batch": 16}, "LLaMA-shaped, one token for 16 sequences"),
    "kv-growth": ("llama", "kv_growth", {}, "a growing KV cache"),
    "finetune": ("tuning", "finetune", {}, "full fine-tuning with AdamW"),
    "lora": ("tuning", "lora", {}, "LoRA fine-tuning on frozen weights"),
    "moe": ("llama", "moe", {}, "mixture of experts, one token, random routing"),
}


def size(text):
    units = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
    digits = text.rstrip("KMGTkmgt")
    try:
        return int(float(digits) * (1 << units[text[len(digits) :].upper()]))
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write for example 512M or 4G") from None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="names and descriptions, one a line")
    parser.add_argument("--check", action="store_true", help="what this Python and its GPU have, as JSON")
    parser.add_argument("--peak", type=size, default=size("4G"), help="about how much memory it needs")
    parser.add_argument("--scale", type=int, help="layers, batch or pieces instead of what --peak gives")
    parser.add_argument("--iterations", type=int, default=10, help="the second half counts")
    parser.add_argument("--seconds", type=float, default=60, help="after these no further iteration is begun")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="as small as it can be")
    parser.add_argument(
        "--offload", action="store_true", help="the framework's own: accelerate for inference, save_on_cpu for training"
    )
    parser.add_argument("--offload-budget", type=size, default=0, help="how much stays on the GPU with --offload")
    options = parser.parse_args()
    if not (options.list or options.check) and options.name is None:
        parser.error("which workload? --list names them")
    if options.iterations < 1:
        parser.error("--iterations must be at least 1")
    return options


def check():
    """What there is to run the workloads with; "problem" says why it would not work."""
    found = {"schema": 1, "python": sys.version.split()[0], "torch": None, "problem": None}
    try:
        import torch
    except (ImportError, OSError) as error:
        return found | {"problem": str(error).strip().splitlines()[0]}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.version.cuda is None:
        return found | {"problem": "it was built for CPUs only; install one that is built for CUDA"}
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        return found | {"problem": str(error).strip().splitlines()[0]}
    return found | {"device": torch.cuda.get_device_name(), "free_bytes": free, "total_bytes": total}


def run(options):
    import importlib

    try:
        import torch
    except ImportError:
        return {"skipped": "PyTorch is not installed: pip install torch"}, SKIPPED
    import harness

    outcome = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
    try:
        harness.make_deterministic(options.seed)
        setting = harness.Setting(options)
        if setting.cuda:
            outcome["device"] = torch.cuda.get_device_name(setting.device)
            outcome["total_bytes"] = torch.cuda.mem_get_info()[1]
        file, function, extra, _ = WORKLOADS[options.name]
        workload = getattr(importlib.import_module(file), function)(setting, **extra)
        outcome.update(harness.measure(setting, workload, options.iterations, options.seconds))
        return outcome, 0
    except harness.Skipped as why:
        outcome["skipped"] = str(why)
        return outcome, SKIPPED
    except (RuntimeError, ArithmeticError) as error:
        # torch.OutOfMemoryError is a RuntimeError; cuDNN and cuBLAS say the same in words only.
        words = str(error).strip().splitlines() or ["?"]
        outcome["error"] = words[0]
        return outcome, OUT_OF_MEMORY if "out of memory" in str(error).lower() else 1


def main():
    options = arguments()
    if options.list:
        for name, (_, _, _, words) in WORKLOADS.items():
            print(f"{name:<12} {words}")
        return
    if options.check:
        print(json.dumps(check()))
        return
    # Before CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    outcome = {
        "schema": 1,
        "workload": options.name,
        "seed": options.seed,
        "offload": options.offload,
        "skipped": None,
        "error": None,
    }
    found, code = run(options)
    outcome.update(found)
    print(json.dumps(outcome), flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
