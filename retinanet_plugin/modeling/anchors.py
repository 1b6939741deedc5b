"""Anchors, section 4 of the paper: octave scales times aspect ratios at each place."""

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

from ..errors import UserError
from .anchor_grid import AnchorGrid
from .registry import register_once

# Grids kept: pictures of one run come in a few dozen padded shapes; a grid of 200k anchors is 3 MB.
_KEPT_GRIDS = 32


class _Recent:
    """Values by key, those asked for most recently; a copy or pickle of it holds none."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        if len(self._values) > _KEPT_GRIDS:
            self._values.popitem(last=False)
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Recent, ()


class RetinaNetAnchorGenerator(DefaultAnchorGenerator):
    """``SCALES_PER_OCTAVE`` sizes times the aspect ratios, proportional to a level's stride.

    The sizes (square roots of the areas) of a level are ``anchor_scale * stride * 2^(i / s)`` for
    i in 0 .. s - 1. With the defaults and strides 8 to 128: 32 to 813 pixels, 9 anchors a place.
    The order within a place is detectron2's: size first, then ratio.

    Unlike its base it keeps the grids that it has computed, the most recent ones.

    Args:
        strides: of each feature level, in pixels.
        anchor_scale: smallest anchor size of a level, in strides.
        scales_per_octave: sizes a level.
        aspect_ratios: height / width.
        offset: of the first anchor's centre from the corner of the picture, in strides, in [0, 1).

    Raises:
        UserError: if a number is out of range.
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
        if scales_per_octave < 1:
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.SCALES_PER_OCTAVE: {scales_per_octave} given; "
                "give a whole number of at least 1."
            )
        if not anchor_scale > 0:
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE: {anchor_scale} given; give a number above 0."
            )
        ratios = [
            x
            for level in aspect_ratios
            for x in (level if isinstance(level, Sequence) else [level])
        ]
        if not ratios or not all(0 < ratio < math.inf for ratio in ratios):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS: {aspect_ratios} given; give heights in "
                "widths, each above 0, such as [[0.5, 1.0, 2.0]]."
            )
        octave = [2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        sizes = [[anchor_scale * stride * step for step in octave] for stride in strides]
        super().__init__(
            sizes=sizes, aspect_ratios=aspect_ratios, strides=list(strides), offset=offset
        )
        self._grids = _Recent()

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
        """As the base, from the store where it can: (H_i * W_i * A, 4) a level, XYXY, in pixels."""
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
    """The anchors that torchvision's RetinaNet was trained with, in this plugin's order.

    Sizes are cut to whole pixels and edges rounded to them. Places lie as far apart along x and y
    as makes a level fill the padded picture, rounded down: 61 pixels, not 64, where 800 rows of
    pixels are 13 of P6. The picture has as many pixels as the first level's places times its
    stride.
    """

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32.0,), aspect_ratios: Sequence[float] = (1.0,)
    ) -> Tensor:
        whole = [math.floor(size) for size in sizes]
        cells: Tensor = super().generate_cell_anchors(whole, aspect_ratios)
        return cells.round()

    def _make_grids(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        height, width = (places * self.strides[0] for places in grid_sizes[0])
        grids = []
        for (rows, columns), cell in zip(grid_sizes, self.cell_anchors.buffers(), strict=True):
            y = (torch.arange(rows, device=cell.device) + self.offset) * (height // rows)
            x = (torch.arange(columns, device=cell.device) + self.offset) * (width // columns)
            y, x = (z.flatten() for z in torch.meshgrid(y, x, indexing="ij"))
            places = torch.stack((x, y, x, y), dim=1)
            grids.append((places[:, None] + cell).flatten(0, 1))
        return grids


class HostAnchors:
    """The :class:`AnchorGrid` of features of any shape: on the CPU, where ground truth comes.

    A copy of the generator makes them there, so that nothing waits for the model's device. The most
    recent ones are kept.

    Args:
        generator: maps features to a ``Boxes`` a level, from their shapes alone.
    """

    def __init__(self, generator: nn.Module) -> None:
        self.generator = generator
        self._on_cpu = copy.deepcopy(generator).cpu()
        self._grids = _Recent()

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
