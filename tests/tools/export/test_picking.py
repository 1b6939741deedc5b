"""NMS of fixed shape against torchvision's, class by class."""

import pytest
import torch
from retinanet_plugin.tools.export.command.traceable_nms import pick
from torchvision.ops import nms


def by_torchvision(boxes, scores, classes, most, threshold):
    kept = (
        torch.cat(
            [
                index[nms(boxes[index].double(), scores[index].double(), threshold)]
                for index in ((classes == c) & (scores > 0) for c in classes.unique())
                for index in [torch.where(index)[0]]
            ]
        )
        .sort()
        .values
    )
    return kept[scores[kept].sort(descending=True, stable=True).indices][:most]


@pytest.mark.parametrize("shift", [0.0, -5000.0])
def test_the_best_of_what_torchvision_keeps_whatever_the_batch(shift: float) -> None:
    """Also far outside the picture, where shifting classes apart would let them meet."""
    corner = torch.rand(3, 200, 2) * 60
    boxes = torch.cat([corner, corner + torch.rand(3, 200, 2) * 40 + 1], dim=2)
    boxes[:, ::2] += shift
    scores, classes = torch.rand(3, 200), torch.randint(4, (3, 200))
    scores[scores < 0.2] = 0
    scores[1] = (scores[1] * 8).round() / 8  # many are equal
    scores[2, 5:] = 0
    indices, picked = pick(boxes, scores, classes, 50, 0.5)
    for i in range(3):
        expected = by_torchvision(boxes[i], scores[i], classes[i], 50, 0.5)
        assert indices[i, : len(expected)].tolist() == expected.tolist()
        assert torch.equal(picked[i, : len(expected)], scores[i, expected])
        assert not picked[i, len(expected) :].any()


def test_boxes_without_area_suppress_nothing_and_are_picked_once() -> None:
    boxes = torch.tensor([[[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]]])
    indices, picked = pick(boxes, torch.tensor([[0.5, 0.9, 0.7]]), torch.zeros(1, 3), 4, 0.5)
    assert indices[0, :3].tolist() == [1, 2, 0]
    assert picked[0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0])
