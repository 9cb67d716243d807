#!/usr/bin/env python3
"""A LLaMA and a GPT-2 of transformers from random configurations: generate, fine-tune, LoRA (PEFT), checkpointing.

The models are larger than the VRAM budget of a run under emuV; CLIENT_SMALL=1 makes tiny ones, to try the script.
"""

import gc
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harness import Skip, Suite, require

DEVICE = "cuda:0"
SMALL = os.environ.get("CLIENT_SMALL") == "1"
VOCABULARY = 1000 if SMALL else 32_000


def before(seed):
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(seed)


suite = Suite(__doc__, before)


def llama():
    """About 1.1 GB of fp32 weights."""
    size = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    if not SMALL:
        size = dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=18, num_attention_heads=16,
                    num_key_value_heads=8)
    with torch.device(DEVICE):
        return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **size))


def gpt2():
    """About 0.6 GB of fp32 weights."""
    size = dict(n_embd=64, n_layer=2, n_head=4) if SMALL else dict(n_embd=1024, n_layer=10, n_head=16)
    with torch.device(DEVICE):
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=256, **size))


def tokens(rows, columns):
    return torch.randint(3, VOCABULARY, (rows, columns), device=DEVICE)


def generate(model):
    prompt = tokens(2, 24)
    return model.eval().generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, min_new_tokens=16,
                                 do_sample=False, pad_token_id=0)


def fine_tune(model, steps=5):
    """The losses, and the sum of each weight that was trained."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch, losses = tokens(2, 64), []
    for _ in range(steps):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    require(all(map(torch.isfinite, losses)), f"losses {[float(loss) for loss in losses]}")
    return losses, [parameter.detach().double().sum() for parameter in trained]


def low_rank(model, modules):
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise Skip("PEFT is not installed") from None
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM"))
    frozen = [parameter.detach().double().sum() for parameter in model.parameters() if not parameter.requires_grad]
    results = fine_tune(adapted)
    after = [parameter.detach().double().sum() for parameter in model.parameters() if not parameter.requires_grad]
    require(all(map(torch.equal, frozen, after)), "a frozen weight changed")
    return results


@suite.check
def llama_generate(seed):
    return generate(llama())


@suite.check
def llama_generate_bf16_sampled(seed):
    prompt = tokens(2, 16)
    return llama().to(torch.bfloat16).eval().generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8,
                                                      min_new_tokens=8, do_sample=True, top_k=50, pad_token_id=0)


@suite.check
def llama_fine_tune(seed):
    return fine_tune(llama())


@suite.check
def llama_fine_tune_checkpointed(seed):
    model = llama()
    model.gradient_checkpointing_enable()
    return fine_tune(model, steps=3)


@suite.check
def llama_lora(seed):
    return low_rank(llama(), ["q_proj", "v_proj"])


@suite.check
def gpt2_generate(seed):
    return generate(gpt2())


@suite.check
def gpt2_fine_tune(seed):
    return fine_tune(gpt2())


@suite.check
def gpt2_lora(seed):
    return low_rank(gpt2(), ["c_attn"])


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    suite.main()
