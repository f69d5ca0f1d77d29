"""A make-believe accelerator, for machines without a real one: the device "pretend".

Its tensors hold their numbers in a tensor of the processor, and every operation is done there. What
it has of a real device is what programs get wrong: tensors of two devices do not mix (as on CUDA,
only numbers of no dimension and index tensors may come from the processor), it has no NumPy array,
its backward pass runs in a thread of its own, its fused attention has no second derivative, and
autocast works on it. A tensor may be too large for it. Time is none of its matters.

    python tests/accelerator.py stages/tune.py …

runs a script with DEVICE=pretend.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretend"
MIXING = {"copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
aten = torch.ops.aten


class _Module(_DummyBackendModule):
    chosen: int | None = None

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def set_device(self, device):
        self.chosen = torch.device(device).index


class Use:
    """What happened on the device, and how large a tensor may be there."""

    operations = 0
    fused = 0
    most = float("inf")  # numbers


class Pretended(Tensor):
    """A tensor of the device; `raw` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Pretended:
        if raw.numel() > Use.most:
            raise torch.OutOfMemoryError(f"{NAME} out of memory. Tried to allocate {raw.numel()}")
        with torch.inference_mode(False):  # views of earlier tensors must be no inference tensors
            made = Tensor._make_wrapper_subclass(
                cls,
                raw.shape,
                strides=raw.stride(),
                storage_offset=raw.storage_offset(),
                dtype=raw.dtype,
                device=torch.device(NAME, 0),
            )
        made.raw = raw
        return made

    def tolist(self) -> list:
        return self.raw.tolist()

    def __repr__(self) -> str:
        return f"Pretended({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


def wrapped(value):
    return Pretended(value) if isinstance(value, Tensor) else value


def inside(value):
    if isinstance(value, Pretended):
        return value.raw
    return torch.device("cpu") if isinstance(value, torch.device) else value


def check_devices(name: str, arguments) -> None:
    tensors = [a for a in tree_flatten(arguments)[0] if isinstance(a, Tensor)]
    strangers = [t for t in tensors if not isinstance(t, Pretended) and t.dim() > 0]
    if strangers and len(strangers) < len(tensors) and name not in MIXING:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and {strangers[0].device}! ({name})"
        )


def computed(function, args, kwargs):
    """An operation with at least one tensor of the device."""
    if function is aten.scaled_dot_product_attention.default:  # in inference mode
        return attention(*args, **kwargs)
    if (
        function._can_decompose()
        and (found := function.decompose(*args, **kwargs)) is not NotImplemented
    ):
        return found  # what inference mode leaves whole
    name = function._schema.name.removeprefix("aten::")
    check_devices(name, (args, kwargs))
    Use.operations += 1
    raw_args, raw_kwargs = tree_map(inside, args), tree_map(inside, kwargs)
    result = function(*raw_args, **raw_kwargs)
    if name == "copy_" and not isinstance(args[0], Pretended):
        return args[0]
    if name == "_to_copy" and kwargs.get("device", args[0].device).type == "cpu":
        return result
    return return_and_correct_aliasing(function, args, kwargs, tree_map(wrapped, result))


class Fused(torch.autograd.Function):
    """The device's own kernel of attention: it is not made of operations, so it is differentiable
    once.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask):
        Use.fused += 1
        out, total = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)
        ctx.save_for_backward(q, k, v, mask, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        q, k, v, mask, out, total = ctx.saved_tensors
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        return *backward(gradient, q, k, v, out, total, 0.0, False, attn_mask=mask), None


def attention(q, k, v, attn_mask=None, *rest, **others):
    """As PyTorch chooses: the fused kernel, unless `sdpa_kernel` asks for another."""
    if torch._C._get_overrideable_sdp_enabled() and not any((*rest, *others.values())):
        return Fused.apply(q, k, v, attn_mask)
    return aten._scaled_dot_product_attention_math(q, k, v, attn_mask, *rest, **others)[0]


def _register() -> list[torch.library.Library]:
    """What comes without a tensor of the device, and autocast; the registrations live as long as
    what is returned.
    """
    made = torch.library.Library("aten", "IMPL")

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        return Pretended(torch.empty(size, dtype=dtype or torch.get_default_dtype()))

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        dtype = dtype or torch.get_default_dtype()
        return Pretended(torch.empty_strided(size, stride, dtype=dtype))

    def arange(*arguments, dtype=None, layout=None, device=None, pin_memory=None):
        return Pretended(torch.arange(*arguments, dtype=dtype))

    def copy_from(source, target, non_blocking=False):  # `torch.tensor(…, device=…)`
        inside(target).copy_(inside(source))
        return target

    made.impl("_copy_from", copy_from, "PrivateUse1")
    made.impl("scaled_dot_product_attention", attention, "AutogradPrivateUse1")
    made.impl("empty.memory_format", empty, "PrivateUse1")
    made.impl("empty_strided", empty_strided, "PrivateUse1")
    for name in ("arange", "arange.start", "arange.start_step"):
        made.impl(name, arange, "PrivateUse1")
    return [made, *_autocast()]


SHORT = (
    "linear",
    "mm",
    "bmm",
    "addmm",
    "matmul",
    "baddbmm",
    "scaled_dot_product_attention",
    "conv2d",
)
LONG = (
    "softmax.int",
    "log_softmax.int",
    "layer_norm",
    "cross_entropy_loss",
    "nll_loss",
    "exp",
    "norm.ScalarOpt_dim",
    "linalg_vector_norm",
)


def _autocast() -> list[torch.library.Library]:
    """Products in 16 bits, and what would lose by it in 32: as on CUDA."""
    made = torch.library.Library("aten", "IMPL")
    key = torch._C.DispatchKey.AutocastPrivateUse1
    own = torch._C.DispatchKeySet(key)

    def casting(operation, dtype):
        def cast(value):
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if floating and value.device.type == NAME else value

        def run(*args, **kwargs):
            with torch._C._ExcludeDispatchKeyGuard(own):
                return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

        return run

    for names, dtype in ((SHORT, torch.bfloat16), (LONG, torch.float32)):
        for name in names:
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(aten, packet), overload or "default")
            made.impl(name, casting(operation, dtype), "AutocastPrivateUse1")
    through = torch.library.Library("_", "IMPL")
    through.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return [made, through]


# Not beside a real one: PyTorch would ask the make-believe device for pinned memory.
WANTED = os.environ.get("ACCELERATOR", NAME) == NAME
if WANTED and torch.utils.backend_registration._privateuse1_backend_name != NAME:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    KEPT = _register()


if __name__ == "__main__":
    os.environ["DEVICE"] = NAME
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
