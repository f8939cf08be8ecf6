"""Machine code of the kernel in torch/triton.py, for GPUs that need not be present."""

import re

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keras_smoothl1.backends.torch import triton as kernels

TARGETS = {
    "sm_75": GPUTarget("cuda", 75, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHAPE = (4096, 64, 64, 4)
# A mean and its gradient: the dtype, the weight and the beta of each variant.
VARIANTS = {
    "mean": {},
    "mean, float16": {"dtype": "fp16"},
    "mean, bfloat16": {"dtype": "bf16"},
    "mean, float64": {"dtype": "fp64"},
    "weight per image": {"weight": "fp32", "weight_shape": (4096, 1, 1, 1)},
    "weight per element": {"weight": "fp32", "weight_shape": SHAPE},
    "mask per pixel": {"weight": "i1", "weight_shape": (4096, 64, 64, 1)},
    "beta per output": {"has_betas": True},
}
SIZES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
NVIDIA = {
    "instruction": r"\t\s*(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)",
    "load": r"LDG\.E(?!\.128)",
    "wide load": r"LDG\.E\.128",
    "store": r"STG\.E(?!\.128)",
    "wide store": r"STG\.E\.128",
    "division": r"FCHK|MUFU\.RCP64H",  # part of a correctly rounded one
    "spill": r"LDL|STL",
}
AMD = {
    "instruction": r"^\s+([a-z]\w+)",
    "load": r"global_load_(?!dwordx4)",
    "wide load": r"global_load_dwordx4",
    "store": r"global_store_(?!dwordx4)",
    "wide store": r"global_store_dwordx4",
    "division": r"v_div_fixup",
    "spill": r"scratch_|buffer_(load|store)",
}


def instructions(target, **variant):
    """Returns the instructions of each kind per thread, and the elements per thread.

    They are those of a full tile and of a partial one.
    """
    kernel, tile_size = compile_mean(target, **variant)
    kinds, code = (
        (AMD, kernel.asm["amdgcn"])
        if target.startswith("gfx")
        else (NVIDIA, kernel.asm["sass"])
    )
    names = re.findall(kinds["instruction"], code, re.MULTILINE)
    counts = {
        kind: sum(bool(re.match(pattern, name)) for name in names)
        for kind, pattern in kinds.items()
    }
    return counts, tile_size // kernels.THREADS


def compile_mean(
    target, *, dtype="fp32", weight=None, weight_shape=None, has_betas=False
):
    """Compiles a mean of SHAPE with its gradient; returns kernel and tile size."""
    compute_dtype = "fp64" if dtype == "fp64" else "fp32"
    tensors = {
        "y_true": dtype,
        "y_pred": dtype,
        "weight": weight,
        "betas": compute_dtype if has_betas else None,
        "divisors": None,
        "grad_output": None,
        "output": compute_dtype,
        "gradient": dtype,
    }
    numbers = {
        "beta": "fp64",
        "divisor": "i64",
        "size": "i64",
        "weight_run": "i64",
        "weight_period": "i64",
        "betas_run": "i64",
        "betas_period": "i64",
    }
    shapes = (weight_shape, (1, 1, 1, SHAPE[-1]) if has_betas else None)
    patterns = [
        kernels._shared(x if x is None else torch.empty(x, device="meta"), SHAPE)[-1]
        for x in shapes
    ]
    settings = kernels.Settings(
        tile_size=kernels.TILE_SIZE,
        dtype=tl.float64 if dtype == "fp64" else tl.float32,
        index_dtype=tl.int32,
        weight=patterns[0],
        betas=patterns[1],
        grad_by_element=False,
        is_sum=True,
        divides_sum=False,
        skips_grad_of_one=False,
    )
    signature, constants, attributes = dict(numbers), {}, {}
    signature["settings"], constants[(15,)] = "constexpr", settings
    for index, (name, element) in enumerate(tensors.items()):
        signature[name] = f"*{element}" if element else "constexpr"
        if element:
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            constants[(index,)] = None
    names = kernels._kernel.arg_names
    signature = {name: signature[name] for name in names}
    source = ASTSource(kernels._kernel, signature, constants, attributes)
    target = TARGETS[target]
    warps = kernels.THREADS // target.warp_size
    options = {**kernels.OPTIONS, "num_warps": warps}
    return triton.compile(source, target=target, options=options), kernels.TILE_SIZE
