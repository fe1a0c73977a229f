"""A UNet drawn: its parts with the shapes that leave them, and what each stage costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minidiff.plot.charts import COLOURS


def record(network: nn.Module, *inputs: Tensor) -> dict[str, tuple[tuple, tuple, float]]:
    """Shape in, shape out and GFLOPs of the network's parts as it works on `inputs`, in order.

    Parts are named as the network names them: "stem", "down.0.0", "mid.1", "up.0.2", "head".
    """
    found: dict[str, tuple[tuple, tuple, float]] = {}
    handles = []

    def after(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
            found[name] = (tuple(args[0].shape), tuple(out.shape), 0.0)

        return hook

    parts = {name: part for name, part in network.named_modules() if _is_part(name)}
    for name, part in parts.items():
        handles.append(part.register_forward_hook(after(name)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    counts = counter.get_flop_counts()
    root = type(network).__name__
    for name, (into, out, _) in found.items():
        found[name] = (into, out, sum(counts.get(f"{root}.{name}", {}).values()) / 1e9)
    return found


def _is_part(name: str) -> bool:
    """Whether a module's name is that of one box of the diagram."""
    depth = {"stem": 1, "head": 1, "mid": 2, "down": 3, "up": 3}
    return name.count(".") + 1 == depth.get(name.split(".")[0])


def diagram(network: nn.Module, *inputs: Tensor) -> None:
    """The network as a U: one box a part with the shape that leaves it, arrows for the skips."""
    parts = record(network, *inputs)
    full = inputs[0].shape[-1]
    order = list(parts)
    figure, axis = plt.subplots(figsize=(10.5, 5.2), dpi=80)
    at = {}
    for i, name in enumerate(order):
        _, (_, channels, _, width), _ = parts[name]
        part = network.get_submodule(name)
        row = -math.log2(full / width)
        at[name] = (i, row)
        attends = any(type(m).__name__.endswith("Attention") for m in part.modules())
        kind = _kind(name, part, attends)
        axis.add_patch(
            plt.Rectangle((i - 0.42, row - 0.2), 0.84, 0.4, color=COLOURS[kind], alpha=0.85, lw=0)
        )
        label = f"{channels}\n{width}×{width}"
        axis.text(i, row, label, ha="center", va="center", color="white", fontsize=8.5)
        axis.text(i, row - 0.25, name, ha="center", va="top", fontsize=7, rotation=30, color="#555")
    kept = []
    for i, name in enumerate(order):
        x, y = at[name]
        if i:
            px, py = at[order[i - 1]]
            arrow = dict(arrowstyle="-|>", color="#444444", lw=1, shrinkA=0, shrinkB=0)
            axis.annotate("", (x - 0.42, y), (px + 0.42, py), arrowprops=arrow)
        if name == "stem" or name.startswith("down"):
            kept.append(name)
        if name.startswith("up") and kept and not _resizes(network.get_submodule(name)):
            px, py = at[kept.pop()]
            bow = dict(arrowstyle="-|>", color="#999999", lw=0.9, ls=(0, (3, 2)))
            bow |= dict(connectionstyle=f"arc3,rad={-0.12 - 0.006 * (x - px):.3f}")
            axis.annotate("", (x, y + 0.2), (px, py + 0.2), arrowprops=bow)
    names = ("convolution", "residual block", "residual block and attention", "half or twice")
    for kind, words in enumerate(names):
        axis.add_patch(plt.Rectangle((0, 0), 0, 0, color=COLOURS[kind], label=words))
    axis.set_xlim(-0.8, len(order) - 0.2)
    axis.set_ylim(min(y for _, y in at.values()) - 0.75, 0.95)
    axis.legend(loc="lower center", ncols=4, fontsize=8.5)
    axis.axis("off")
    plt.show()


def _kind(name: str, part: nn.Module, attends: bool) -> int:
    if name in ("stem", "head"):
        return 0
    if _resizes(part):
        return 3
    return 2 if attends else 1


def _resizes(part: nn.Module) -> bool:
    """Whether a part of the way down or up is the one that halves or doubles the size."""
    return not any(isinstance(module, nn.GroupNorm) for module in part.modules())


def costs(network: nn.Module, *inputs: Tensor) -> dict[str, tuple[float, float]]:
    """Million parameters and GFLOPs an image of each stage: "stem", "down 0", ..., "head"."""
    found: dict[str, tuple[float, float]] = {}
    for name, (_, _, gflops) in record(network, *inputs).items():
        stage = " ".join(name.split(".")[: 1 if name.startswith("mid") else 2])
        if name.startswith("up"):  # up.0 is the deepest level
            stage = f"up {len(network.up) - 1 - int(name.split('.')[1])}"
        part = sum(p.numel() for p in network.get_submodule(name).parameters())
        before = found.get(stage, (0.0, 0.0))
        found[stage] = (before[0] + part / 1e6, before[1] + gflops / len(inputs[0]))
    return found


def bars(tables: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """Share of parameters beside share of operations, stage by stage, a panel a network."""
    figure, axes = plt.subplots(1, len(tables), figsize=(10, 3.1), squeeze=False)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        totals = [sum(values[i] for values in table.values()) for i in (0, 1)]
        places = range(len(table))
        for i, (what, unit) in enumerate((("parameters", "M"), ("operations", " GFLOP"))):
            height = [100 * values[i] / totals[i] for values in table.values()]
            label = f"{what}, {totals[i]:.3g}{unit} in all"
            axis.bar([p + 0.4 * i - 0.2 for p in places], height, 0.38, label=label)
        axis.set_xticks(list(places), list(table), rotation=35)
        axis.set_title(title)
        axis.set_ylabel("% of the network")
        axis.legend(fontsize=9)
    plt.show()
