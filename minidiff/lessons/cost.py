"""What running a notebook costs: CPU time, memory, and the floating-point operations of networks.

Counting every operation of a whole lesson would slow it down several times. So only the first call
of a network on inputs of one shape is counted, by torch's `FlopCounterMode`; later calls of that
shape add the same number. A backward pass adds twice its forward pass, as training does: this is a
third too much where only the image's gradient is wanted. Arithmetic outside modules is not counted.
"""

from __future__ import annotations

import resource
import sys
import time
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Meter:
    """Counts the calls of outermost modules, from `start` to `stop`."""

    def __init__(self):
        self.flops = 0
        self._known: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()
        self._inside = False

    def start(self) -> Meter:
        # Not a hook of torch: FlopCounterMode adds and removes hooks, which no hook may do.
        self._call = nn.Module.__call__
        nn.Module.__call__ = lambda module, *args, **kwargs: self._count(module, args, kwargs)
        return self

    def stop(self) -> None:
        nn.Module.__call__ = self._call

    def _count(self, module: nn.Module, args: tuple, kwargs: dict) -> object:
        if self._inside:
            return self._call(module, *args, **kwargs)
        known = self._known.setdefault(module, {})
        shapes = _shapes((*args, *kwargs.values()))
        self._inside = True
        try:
            if shapes in known:
                out = self._call(module, *args, **kwargs)
            else:
                with FlopCounterMode(display=False) as counter:
                    out = self._call(module, *args, **kwargs)
                known[shapes] = counter.get_total_flops()
        finally:
            self._inside = False
        forward = known[shapes]
        self.flops += forward
        for tensor in _tensors(out):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._backward(2 * forward))
                break  # one backward pass goes through all outputs
        return out

    def _backward(self, flops: int) -> None:
        self.flops += flops

    def read(self) -> dict[str, float]:
        """PFLOPs of networks since `start`; CPU minutes and peak gigabytes of this process."""
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "minutes": time.process_time() / 60,
            "gigabytes": peak / 1e9,
            "pflops": self.flops / 1e15,
        }


def _tensors(value: object) -> list[Tensor]:
    """The tensors of a value, of a tuple such as a Condition, and of tuples in tuples."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, tuple) else []


def _shapes(args: tuple) -> tuple:
    return tuple(tuple(tensor.shape) for tensor in _tensors(args))
