"""How the weights of a checkpoint fit a model, and its classes those of a dataset."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..utils import shorten

SCORES = "head.cls_score"  # the classification layer


class WeightsReport:
    """Which parameters of a model a checkpoint has set.

    Args:
        model: the model.
        incompatible: what ``Checkpointer._load_model`` returned.

    Attributes:
        reshaped: parameters of another shape: name -> (shape in the file, shape in the model).
        missing: the other parameters that were not set.
        num_loaded: how many parameters were set.
    """

    def __init__(self, model: nn.Module, incompatible: Any) -> None:
        names = [name for name, _ in model.named_parameters()]
        self.reshaped = {x: shapes for x, *shapes in incompatible.incorrect_shapes if x in names}
        unset = {*incompatible.missing_keys} - {*self.reshaped}
        self.missing = [x for x in names if x in unset]
        self.num_loaded = len(names) - len(self.missing) - len(self.reshaped)
        self._total = len(names)
        self._unused = incompatible.unexpected_keys

    def __str__(self) -> str:
        parts = [f"the checkpoint sets {self.num_loaded} of the model's {self._total} parameters"]
        if self.reshaped:
            name, (there, here) = next(iter(self.reshaped.items()))
            parts.append(
                f"{len(self.reshaped)} have another shape ({name} is {tuple(there)} in the file, "
                f"{tuple(here)} in the model)"
            )
        if self.missing:
            parts.append(f"{len(self.missing)} are missing ({shorten(self.missing)})")
        if self._unused:
            parts.append(f"{len(self._unused)} in the file are unused ({shorten(self._unused)})")
        return ", ".join(parts)

    def advice(self, classes: list[str] | None) -> str:
        """What to change, given the classes in the file, if it names them."""
        keys = "MODEL.RESNETS.DEPTH and NORM, MODEL.FPN"  # the backbone differs
        if all(name.startswith("head.") for name in (*self.missing, *self.reshaped)):
            known = f" ({len(classes)} in the file: {shorten(classes)})" if classes else ""
            keys = f"MODEL.RETINANET.NUM_CLASSES{known}, MODEL.ANCHOR_GENERATOR"
        return f"give the config that they were trained with ({keys}), or weights of this model"


def difference(theirs: list[str] | None, ours: list[str] | None) -> str:
    """How two lists of classes differ; empty if they are equal or one is unknown."""
    if not theirs or not ours or theirs == ours:
        return ""
    if len(theirs) != len(ours):
        return f"{len(theirs)} ({shorten(theirs)}) in the file, {len(ours)} ({shorten(ours)}) here"
    i = next(i for i, name in enumerate(ours) if name != theirs[i])
    return f'class {i} is "{theirs[i]}" in the file, "{ours[i]}" here'


def take_shared_classes(
    weights: dict[str, Any], model: nn.Module, theirs: Sequence[str], ours: Sequence[str]
) -> list[str] | None:
    """Reorders the classification layer in ``weights``, in place, to the classes ``ours``.

    Classes that the checkpoint knows by name keep their outputs; the others get the initial ones
    of the model.

    Returns:
        the shared classes; None if the layer cannot be reordered, because the anchors differ.
    """
    state = model.state_dict()
    shared = [name for name in ours if name in theirs]
    here, there = ([names.index(x) for x in shared] for names in (list(ours), list(theirs)))
    reordered: dict[str, Tensor] = {}
    for name in (f"{SCORES}.weight", f"{SCORES}.bias"):
        initial, given = state.get(name), weights.get(name)
        if initial is None or given is None:
            return None
        num_anchors = len(initial) // len(ours)
        if given.shape != (num_anchors * len(theirs), *initial.shape[1:]):
            return None
        rows = initial.unflatten(0, (num_anchors, -1)).clone()  # (A, K, ...)
        given = torch.as_tensor(given).unflatten(0, (num_anchors, -1))
        rows[:, here] = given[:, there].to(initial)
        reordered[name] = rows.flatten(0, 1)
    weights.update(reordered)
    return shared
