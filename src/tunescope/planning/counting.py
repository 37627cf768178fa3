"""What a computation takes, counted without doing it: bytes that live at once, and work.

On torch's ``meta`` device tensors have shapes and no values. Whatever depends on a weight lies there; what does not
(token ids, masks, places) has its values, so code that looks at these runs as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

_META = torch.device("meta")
# Made from nothing but numbers: on any device they have values.
_KNOWN = ("arange", "zeros", "ones", "full", "scalar_tensor")
# Places may be given as a mask, whose values say how many there are.
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


@dataclass(frozen=True)
class Work:
    """What is computed.

    Attributes:
        flops: of matrix products; a multiplication and an addition are two.
        product_bytes: that matrix products read and write.
        other_bytes: that all else reads and writes.
        operations: how many were called, views left out.
    """

    flops: float = 0.0
    product_bytes: float = 0.0
    other_bytes: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.product_bytes + other.product_bytes,
            self.other_bytes + other.other_bytes,
            self.operations + other.operations,
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.product_bytes * times, self.other_bytes * times, self.operations * times)


class Counting(TorchDispatchMode):
    """A context within which tensors are counted as they come and go, and operations as they are called.

    Args:
        given: tensors that are there already and are not counted, nor views of them: weights.

    Attributes:
        live: bytes of the tensors that were made within it and are still there.
        work: so far.
    """

    def __init__(self, given: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live, self.work = 0, Work()
        self._peak = 0
        self._sizes = WeakIdKeyDictionary({tensor.untyped_storage(): 0 for tensor in given})

    def take_highest(self) -> int:
        """The most bytes that lived at once since it was last taken."""
        highest, self._peak = self._peak, self.live
        return highest

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        name = func._overloadpacket.__name__
        given = _tensors((args, named))
        if name in _KNOWN:
            if named.get("device") == _META:
                named["device"] = torch.device("cpu")
        elif any(each.device == _META for each in given):
            if name == "_local_scalar_dense":
                return 1.0  # a number that is reported, and decides nothing of what is computed
            if name in _INDEXED:
                args = (args[0], _by_number(args[1]), *args[2:])
            if not all(each.device == _META for each in given) or name in _INDEXED:
                args, named = tree_map_only(torch.Tensor, _without_values, (args, named))
            if named.get("device") is not None:
                named["device"] = _META
        out = func(*args, **named)
        made = _tensors(out)
        for tensor in made:
            self._note(tensor)
        if not func.is_view:
            moved = sum(map(_size, given)) + sum(map(_size, made))
            flops = flop_registry.get(func._overloadpacket)
            if flops is None:
                self.work += Work(other_bytes=moved, operations=1)
            else:
                self.work += Work(flops(*args, **named, out_val=out), product_bytes=moved, operations=1)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._sizes:
            size = self._sizes[storage] = storage.nbytes()
            self.live += size
            self._peak = max(self._peak, self.live)
            weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.live -= size


def _tensors(values: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def _size(tensor: torch.Tensor) -> int:
    """Bytes, those that an expanded tensor repeats counted once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.device == _META else tensor.to(_META)


def _by_number(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Indices with every mask as the numbers of its places."""
    found: list[torch.Tensor | None] = []
    for index in indices:
        masked = index is not None and index.dtype == torch.bool and index.device != _META
        found += index.nonzero(as_tuple=True) if masked and index is not None else [index]
    return found
