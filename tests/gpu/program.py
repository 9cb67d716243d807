"""What the programs here do the same way: the exact bytes of a tensor, one line of JSON, an exit code."""

import ctypes
import json
import os
import sys

OUT_OF_MEMORY = 3


def exact_bytes(tensor):
    """The bytes of a tensor (without NumPy, which not every installation has)."""
    tensor = tensor.detach().cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def ask_for_equal_bits():
    """Must come before CUDA starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def run(outcome, body):
    """Prints what `body` gives, added to `outcome`, as one line of JSON, and ends the process.

    Exit code 0; 3 out of memory, 1 another error: then "error" says which.
    """
    ask_for_equal_bits()
    outcome["error"] = None
    code = 0
    try:
        outcome.update(body())
    except RuntimeError as error:
        # torch.OutOfMemoryError is a RuntimeError; cuDNN and cuBLAS say the same in words only.
        words = str(error).strip().splitlines() or ["?"]
        outcome["error"] = words[0]
        code = OUT_OF_MEMORY if "out of memory" in str(error).lower() else 1
    print(json.dumps(outcome), flush=True)
    sys.exit(code)
