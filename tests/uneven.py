"""A played processor, for `python dev.py test --uneven`: its matrix products, convolutions and attentions round by the
number of rows that they are given, as the kernels of many processors do.

A test that passes without it and fails with it asks two batches of different size for the same last bits. That law
holds on the machine where the test was written, and not on the next one.
"""

import torch
from torch.overrides import TorchFunctionMode

PRODUCTS = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d"}
PRODUCTS |= {"conv2d", "conv3d", "scaled_dot_product_attention"}


class Uneven(TorchFunctionMode):
    """While it is on, a product of n rows is off by n % 5 − 2 units in the last place, up and down in turn."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in PRODUCTS or not isinstance(out, torch.Tensor):
            return out
        if out.dtype not in (torch.float32, torch.float64) or out.ndim < 2 or not out.numel():
            return out
        rows, channels = out.numel() // out.shape[-1], torch.arange(out.shape[-1], device=out.device)
        off = torch.finfo(out.dtype).eps * (rows % 5 - 2) * (1 - 2 * (channels % 2))
        return out * (1 + off.to(out.dtype))
