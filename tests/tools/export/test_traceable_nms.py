"""NMS of fixed shapes against torchvision's, class by class."""

import pytest
import torch
from torchvision.ops import nms

from retinanet_plugin.tools.export.traceable_nms import nms_top_k


def by_torchvision(boxes, scores, classes, count, threshold):
    kept = []
    for label in classes.unique():
        (index,) = torch.where((classes == label) & (scores > 0))
        kept.append(index[nms(boxes[index].double(), scores[index].double(), threshold)])
    kept = torch.cat(kept).sort().values
    return kept[scores[kept].sort(descending=True, stable=True).indices][:count]


@pytest.mark.parametrize("shift", [0.0, -5000.0])  # batched_nms would mix classes at -5000
def test_best_of_what_torchvision_keeps(shift: float) -> None:
    corner = torch.rand(3, 200, 2) * 60
    boxes = torch.cat([corner, corner + torch.rand(3, 200, 2) * 40 + 1], dim=2)
    boxes[:, ::2] += shift
    scores, classes = torch.rand(3, 200), torch.randint(4, (3, 200))
    scores[scores < 0.2] = 0
    scores[1] = (scores[1] * 8).round() / 8  # many are equal
    scores[2, 5:] = 0
    indices, kept = nms_top_k(boxes, scores, classes, 50, 0.5)
    for i in range(3):
        expected = by_torchvision(boxes[i], scores[i], classes[i], 50, 0.5)
        assert indices[i, : len(expected)].tolist() == expected.tolist()
        assert torch.equal(kept[i, : len(expected)], scores[i, expected])
        assert not kept[i, len(expected) :].any()


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = torch.tensor([[[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]]])
    indices, kept = nms_top_k(boxes, torch.tensor([[0.5, 0.9, 0.7]]), torch.zeros(1, 3), 4, 0.5)
    assert indices[0, :3].tolist() == [1, 2, 0]
    assert kept[0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0])
