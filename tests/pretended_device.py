"""A pretended GPU: tensors that say they are on ``cuda`` and compute on the CPU.

    with pretended_cuda():
        model = overpaint.load_model(folder, device="cuda:0")

Code runs with real values, and everything that a GPU refuses is refused: an operation on tensors of both devices, an index or a
random generator of the wrong device, and NumPy on a tensor that was not copied to the CPU first. So a test without a GPU finds
what assumes the CPU, and results can be compared with the CPU's. What a GPU computes differently (kernels, rounding, memory)
is not pretended.

``cuda:0`` is the only card. (``tensor.to("cuda")`` without a number asks torch's CUDA library, and fails.) Tensors of the card
are *meta* tensors to torch's C++ code, like those of `FakeTensorMode`. Unlike those, each one owns a CPU tensor with its values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils import _device
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
#: Operations that may read tensors of both devices.
COPIES = {aten.copy_, aten._to_copy, aten.set_}
#: Operations whose later arguments are indices, which may be on the CPU for a tensor of the card.
INDEXED = {
    aten.index,
    aten.index_put_,
    aten.index_put,
    aten._index_put_impl_,
    aten._unsafe_index,
    aten._unsafe_index_put,
}


class DeviceMismatch(RuntimeError):
    """What a GPU refuses."""


class OnCard(torch.Tensor):
    """A tensor of the pretended card. ``values`` are its values on the CPU."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OnCard:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="meta",
        )
        made.values = values
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = is_cpu = property(lambda self: False)

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.values = other.values

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA, requires_grad=requires_grad)

    def __getitem__(self, index):
        return super().__getitem__(listed(index))

    def __setitem__(self, index, value):
        super().__setitem__(listed(index), value)

    def get_device(self) -> int:
        return 0

    def tolist(self):
        return self.values.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.values.detach(), spec)

    def __repr__(self, **_) -> str:
        return f"OnCard({self.values!r})"

    def numpy(self, **_):
        raise DeviceMismatch("can't convert cuda:0 device type tensor to numpy: copy it to the CPU first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """Creates tensors on the pretended card where code asks for ``cuda``."""

    def __init__(self):
        super().__init__()
        # Torch initialises CUDA for every tensor on a card, except inside a mode with this key.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __enter__(self):
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") is a copy of a CPU tensor
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self._lifts)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def dispatched(func, args, kwargs):
    """The result of an operation, on the device where a GPU would have it."""
    leaves, spec = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    card = any(isinstance(tensor, OnCard) for tensor in tensors)
    asked = kwargs.get("device")
    if asked is not None:
        asked = torch.device(asked)
        if asked.type == "meta" and really_meta(tensors, card):
            return func(*args, **kwargs)
        card = asked.type in ("cuda", "meta")  # C++ code takes the card's tensors to be meta tensors
        if asked.type == "cuda" and asked.index not in (None, 0):
            raise DeviceMismatch(f"CUDA error: invalid device ordinal {asked}")
        kwargs = kwargs | {"device": CPU}
    elif card or len(tensors) > 1:
        check(func, args, tensors)
    generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
    if card and generators:
        raise DeviceMismatch(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
    leaves, spec = tree_flatten((args, kwargs))
    owners = {id(leaf.values): leaf for leaf in leaves if isinstance(leaf, OnCard)}
    if owners and torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # squeeze_ and the like also change the shape of the card's tensor itself
            func(*args, **kwargs)
    args, kwargs = tree_unflatten([leaf.values if isinstance(leaf, OnCard) else leaf for leaf in leaves], spec)
    out, written = func(*args, **kwargs), written_to(func)

    def placed(found):
        if not card or not isinstance(found, torch.Tensor):
            return found
        return owners.get(id(found), found) if written else OnCard(found)

    return tree_map(placed, out)


def listed(index):
    """An index with tensors in place of lists: C++ code makes empty meta tensors of lists."""
    if isinstance(index, tuple):
        return tuple(map(listed, index))
    return torch.tensor(index, dtype=None if index else torch.long) if isinstance(index, list) else index


def really_meta(tensors, card: bool) -> bool:
    """Whether *meta* is what the code asked for: to build a network without memory.

    Otherwise C++ code asked for the device of a tensor of the card.
    """
    moved = any(isinstance(tensor, torch.nn.Parameter) or tensor.device.type == "meta" for tensor in tensors)
    return (moved and not card) or torch.device("meta") == _device.CURRENT_DEVICE


def written_to(func) -> bool:
    """Whether an operation returns arguments that it writes to."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and r.alias_info.is_write for r in returns)


def check(func, args, tensors) -> None:
    """Raise `DeviceMismatch` for tensors of both devices, where a GPU does not allow them.

    A single number on the CPU may meet tensors of the card in elementwise operations.
    """
    packet = func.overloadpacket
    if packet in COPIES:
        return
    if packet in INDEXED:
        target, indices = args[0], [index for index in args[1] if index is not None]
        if not isinstance(target, OnCard) and any(isinstance(index, OnCard) for index in indices):
            raise DeviceMismatch(f"{func}: indices should be either on cpu or on the same device as the indexed tensor")
        tensors = [tensor for tensor in (target, *args[2:3]) if isinstance(tensor, torch.Tensor)]
        numbers = True
    else:
        numbers = torch.Tag.pointwise in func.tags
    places = {isinstance(t, OnCard) for t in tensors if isinstance(t, OnCard) or t.ndim or not numbers}
    if len(places) > 1:
        shapes = [(tuple(t.shape), str(t.device)) for t in tensors]
        raise DeviceMismatch(f"{func}: expected all tensors to be on the same device, got {shapes}")


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Context: this process has one GPU."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a moved module has new parameters
    facts = {"is_available": True, "is_bf16_supported": True, "device_count": 1, "get_device_name": "pretended"}
    facts |= {"max_memory_allocated": 0, "reset_peak_memory_stats": None, "synchronize": None, "empty_cache": None}
    facts |= {"get_rng_state": None, "set_rng_state": None}
    told = {name: lambda *_, value=value, **__: value for name, value in facts.items()}
    try:
        with patch.multiple(torch.cuda, **told), Card():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
