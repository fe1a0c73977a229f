"""What running a notebook costs: CPU time, memory, and the floating-point operations of networks.

Counting every operation of a whole lesson would slow it down several times. So only the first call
of a network on inputs of one shape is counted, by torch's own formulas; later calls of that shape
add the same number. A backward pass adds twice its forward pass, as training does: this is a third
too much where only the image's gradient is wanted. Arithmetic outside modules is not counted.
"""

from __future__ import annotations

import resource
import sys
import time
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    """Adds up the operations between __enter__ and __exit__."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # inference mode hands over whole layers: look inside
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


class Meter:
    """Counts the calls of outermost modules, from `start` on."""

    def __init__(self):
        self.flops = 0
        self._known: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()
        self._depth = 0
        self._counter: _Counter | None = None
        self._handles = []

    def start(self) -> Meter:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._before),
            hooks.register_module_forward_hook(self._after, always_call=True),
        ]
        return self

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple) -> None:
        self._depth += 1
        if self._depth == 1 and _shapes(args) not in self._known.setdefault(module, {}):
            self._counter = _Counter()
            self._counter.__enter__()

    def _after(self, module: nn.Module, args: tuple, out: object) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        known = self._known.setdefault(module, {})
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            known[_shapes(args)] = self._counter.flops
            self._counter = None
        forward = known.get(_shapes(args), 0)
        self.flops += forward
        if isinstance(out, Tensor) and out.requires_grad:
            out.register_hook(lambda gradient: self._backward(2 * forward))

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


def _shapes(args: tuple) -> tuple:
    return tuple(tuple(a.shape) for a in args if isinstance(a, Tensor))
