"""Anchor generators; section 4 of the paper: octave scales times aspect ratios at each location."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from torch import Tensor, nn

from ..errors import check
from .anchor_grid import AnchorGrid
from .registry import register_once

# Images of a run are padded to a few dozen shapes; a grid of 200k anchors takes 3 MB.
_CACHE_SIZE = 32


class _Cache:
    """The most recently used values by key; copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        if len(self._values) > _CACHE_SIZE:
            self._values.popitem(last=False)
        return self._values[key]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Cache, ()


class RetinaNetAnchorGenerator(DefaultAnchorGenerator):
    """Generates ``scales_per_octave`` sizes times the aspect ratios, relative to each stride.

    The sizes (square roots of the areas) of a level are ``anchor_scale * stride * 2^(i / s)`` for
    i in 0 .. s - 1. With the defaults and strides 8 to 128: 32 to 813 pixels, 9 anchors per
    location. The order within a location is detectron2's: size first, then ratio.

    Unlike the base class, it caches the anchors of recent feature shapes.

    Args:
        strides: of each feature level, in pixels.
        anchor_scale: smallest anchor size of a level, in strides.
        scales_per_octave: number of sizes per level.
        aspect_ratios: height / width.
        offset: of the first anchor's center from the corner of the image, in strides, in [0, 1).

    Raises:
        UserError: if an aspect ratio is not above 0.
    """

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        anchor_scale: float = 4.0,
        scales_per_octave: int = 3,
        aspect_ratios: Sequence[float] | Sequence[Sequence[float]] = (0.5, 1.0, 2.0),
        offset: float = 0.0,
    ) -> None:
        levels = [x if isinstance(x, Sequence) else [x] for x in aspect_ratios]
        ratios = [x for level in levels for x in level]
        check(
            bool(ratios) and all(0 < x < math.inf for x in ratios),
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
            aspect_ratios,
            "numbers above 0 (height / width), such as [[0.5, 1.0, 2.0]]",
        )
        octave = [2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        sizes = [[anchor_scale * stride * step for step in octave] for stride in strides]
        super().__init__(
            sizes=sizes, aspect_ratios=aspect_ratios, strides=list(strides), offset=offset
        )
        self._grids = _Cache()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        anchor_cfg = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "strides": [x.stride for x in input_shape],
            "anchor_scale": anchor_cfg.ANCHOR_SCALE,
            "scales_per_octave": anchor_cfg.SCALES_PER_OCTAVE,
            "aspect_ratios": anchor_cfg.ASPECT_RATIOS,
            "offset": anchor_cfg.OFFSET,
        }

    def _grid_anchors(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        """Returns the base class's anchors, cached: (H_i * W_i * A, 4) per level, XYXY."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self._make_grids(grid_sizes)
        cell = next(self.cell_anchors.buffers())
        key = (*(tuple(size) for size in grid_sizes), cell.device, cell.dtype)
        with torch.no_grad():
            return self._grids.get(key, lambda: self._make_grids(grid_sizes))

    def _make_grids(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        grids: list[Tensor] = super()._grid_anchors(grid_sizes)
        return grids


class TorchvisionAnchorGenerator(RetinaNetAnchorGenerator):
    """Generates the anchors that torchvision's RetinaNet was trained with, in this plugin's order.

    Sizes and edges are rounded to whole pixels. The distance between locations is the padded
    image's size divided by the number of locations, rounded down: 61 pixels, not 64, if 800 rows
    of pixels are 13 rows of P6. The padded image has the size of the first level times its stride.
    """

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32.0,), aspect_ratios: Sequence[float] = (1.0,)
    ) -> Tensor:
        whole = [math.floor(size) for size in sizes]
        cells: Tensor = super().generate_cell_anchors(whole, aspect_ratios)
        return cells.round()

    def _make_grids(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        height, width = (count * self.strides[0] for count in grid_sizes[0])
        grids = []
        for (rows, columns), cell in zip(grid_sizes, self.cell_anchors.buffers(), strict=True):
            y = (torch.arange(rows, device=cell.device) + self.offset) * (height // rows)
            x = (torch.arange(columns, device=cell.device) + self.offset) * (width // columns)
            y, x = (z.flatten() for z in torch.meshgrid(y, x, indexing="ij"))
            shifts = torch.stack((x, y, x, y), dim=1)
            grids.append((shifts[:, None] + cell).flatten(0, 1))
        return grids


class HostAnchors:
    """Makes the :class:`AnchorGrid` of features of any shape, on the CPU.

    Ground truth is on the CPU, and a copy of the generator makes the anchors there, so that nothing
    waits for the model's device. Recent grids are cached.

    Args:
        generator: maps features to a ``Boxes`` per level, depending on their shapes only.
    """

    def __init__(self, generator: nn.Module) -> None:
        self.generator = generator
        self._on_cpu = copy.deepcopy(generator).cpu()
        self._grids = _Cache()

    def __call__(self, features: Sequence[Tensor]) -> AnchorGrid:
        shapes = tuple(x.shape[-2:] for x in features)
        return self._grids.get(shapes, lambda: self._make(features))

    @torch.no_grad()
    def _make(self, features: Sequence[Tensor]) -> AnchorGrid:
        blank = [torch.zeros((), dtype=x.dtype, device="cpu").expand(x.shape) for x in features]
        levels = zip(self._on_cpu(blank), features, strict=True)
        return AnchorGrid([boxes.tensor.unflatten(0, (*x.shape[-2:], -1)) for boxes, x in levels])


register_once(ANCHOR_GENERATOR_REGISTRY, RetinaNetAnchorGenerator)
register_once(ANCHOR_GENERATOR_REGISTRY, TorchvisionAnchorGenerator)
