"""Anchors, section 4 of the paper: octave scales times aspect ratios at each place."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from torch import Tensor

from ..errors import UserError
from .registry import register_once

# Grids kept: pictures of one run come in a few dozen padded shapes; a grid of 200k anchors is 3 MB.
_KEPT_GRIDS = 32


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
        octave = [2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        sizes = [[anchor_scale * stride * step for step in octave] for stride in strides]
        super().__init__(
            sizes=sizes, aspect_ratios=aspect_ratios, strides=list(strides), offset=offset
        )
        self._grids: OrderedDict[tuple[object, ...], list[Tensor]] = OrderedDict()

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
            return super()._grid_anchors(grid_sizes)
        cell = next(self.cell_anchors.buffers())
        key = (*(tuple(size) for size in grid_sizes), cell.device, cell.dtype)
        if key in self._grids:
            self._grids.move_to_end(key)
        else:
            with torch.no_grad():
                self._grids[key] = super()._grid_anchors(grid_sizes)
            if len(self._grids) > _KEPT_GRIDS:
                self._grids.popitem(last=False)
        return self._grids[key]

    def __getstate__(self) -> dict[str, object]:
        """Without the kept grids: a copy or pickle of the model needs none of them."""
        return {**self.__dict__, "_grids": OrderedDict()}


register_once(ANCHOR_GENERATOR_REGISTRY, RetinaNetAnchorGenerator)
