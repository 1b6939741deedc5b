"""The paper's rows: each config says what its table says, trains and evaluates."""

import re

import pytest
import torch
import yaml
from conftest import random_image
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.backbone import build_resnet_backbone
from torch.nn import functional as F

from projects.focal_loss_paper.common import CONFIGS, find_paper_config
from projects.focal_loss_paper.tables import TABLES, Row
from retinanet_plugin import RetinaNetAnchorGenerator, get_config
from retinanet_plugin.engine import Trainer
from retinanet_plugin.utils import flatten

R50, R101 = "Base-R50-600.yaml", "Base-R101-600.yaml"
ROWS = [row for table in TABLES.values() for row in table.rows]
# Some rows are in two tables; the first is their own.
ROW_OF = {row.config: row for row in reversed(ROWS)}
# A narrow network, with norms that keep random weights in bounds.
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RETINANET.NUM_CLASSES", "4"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
]


def folder_of(row: Row) -> str:
    """``a_alpha`` of a_alpha/alpha_0.10.yaml; ``no_fpn`` of no_fpn.yaml."""
    return row.config.removesuffix(".yaml").split("/")[0]


def numbers_in(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"\d+(?:\.\d+)?", text)]


def test_as_many_rows_as_the_paper_has() -> None:
    count = {name: len(table.rows) for name, table in TABLES.items()}
    ablations = {"a_alpha": 7, "b_gamma": 7, "c_anchors": 7, "d_ohem": 10, "e_speed": 10}
    assert count == {**ablations, "fl_star": 4, "variants": 5}
    for name, table in TABLES.items():
        assert table.name == name
        assert len({row.name for row in table.rows}) == len(table.rows)
        assert len({row.label for row in table.rows}) == len(table.rows)
    files = {str(p.relative_to(CONFIGS)) for p in CONFIGS.glob("**/*.yaml")}
    assert files == {*ROW_OF, R50, R101}


def test_what_the_paper_says_about_its_tables() -> None:
    """Differences that sections 5.1 and 5.2 mention."""
    best = {name: max(t.rows, key=lambda row: row.ap or 0) for name, t in TABLES.items()}
    ap = {row.name: row.ap for row in ROWS}
    assert best["a_alpha"].ap - ap["alpha_0.50"] == pytest.approx(0.9)
    assert best["b_gamma"].name == "gamma_2.0"
    assert best["b_gamma"].ap - best["a_alpha"].ap == pytest.approx(2.9)
    assert (ap["scales_1_ratios_1"], ap["scales_3_ratios_3"]) == (30.3, 34.0)
    ohem = max(TABLES["d_ohem"].rows[:-1], key=lambda row: row.ap or 0)
    assert (ohem.name, best["d_ohem"].name) == ("batch_128_nms_0.5", "focal")
    assert best["d_ohem"].ap - ohem.ap == pytest.approx(3.2)
    r101 = ROW_OF["e_speed/R101_600.yaml"]
    assert (r101.ap, r101.milliseconds) == (36.0, 122)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.config)
def test_a_file_is_its_base_and_what_its_table_varies(row: Row) -> None:
    text = row.path.read_text()
    comment = " ".join(x for x in text.splitlines() if x.startswith("#"))
    said = re.findall(r"\b(?:AP|AP50|AP75) (\d+\.\d)|(\d+) ms", comment)
    printed = [row.ap, row.ap50, row.ap75, row.milliseconds]
    assert [float(x or y) for x, y in said] == [x for x in printed if x is not None]

    content = yaml.safe_load(text)
    base = row.path.parent / content.pop("_BASE_")
    expected = R101 if folder_of(row) == "d_ohem" else R50
    if folder_of(row) == "e_speed":
        expected = f"retinanet_{row.name.split('_')[0]}_FPN_1x.yaml"
    elif row.name == "no_prior":
        expected = "cross_entropy.yaml"
    assert base.resolve() == find_paper_config(expected).resolve()
    assert content.pop("OUTPUT_DIR") == f"output/ablations/{row.config.removesuffix('.yaml')}"
    part = "INPUT." if folder_of(row) == "e_speed" else "MODEL."
    assert all(key.startswith(part) for key, _ in flatten(content))


@pytest.mark.parametrize("row", ROW_OF.values(), ids=list(ROW_OF))
def test_a_config_is_what_its_name_and_label_say(row: Row) -> None:
    cfg = get_config(row.path)
    retinanet, anchors = cfg.MODEL.RETINANET, cfg.MODEL.ANCHOR_GENERATOR
    named, labelled = numbers_in(row.name), numbers_in(row.label.replace("1:3", ""))
    folder = folder_of(row)
    pixels = labelled[1] if folder == "e_speed" else 600
    sizes = (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST)
    assert sizes == ((pixels,), pixels)
    largest = {400: 667, 500: 833, 600: 1000, 700: 1167, 800: 1333}[pixels]  # Detectron's
    assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INPUT.MAX_SIZE_TEST == largest
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90_000, (60_000, 80_000))
    depth = labelled[0] if folder == "e_speed" else 101 if folder == "d_ohem" else 50
    assert cfg.MODEL.RESNETS.DEPTH == depth and f"R-{depth:.0f}" in cfg.MODEL.WEIGHTS
    if folder == "a_alpha":
        assert [retinanet.FOCAL_LOSS_ALPHA] == named and retinanet.FOCAL_LOSS_GAMMA == 0
    elif folder == "b_gamma":
        assert [retinanet.FOCAL_LOSS_GAMMA] == named
        assert [retinanet.FOCAL_LOSS_GAMMA, retinanet.FOCAL_LOSS_ALPHA] == labelled
    elif folder == "c_anchors":
        assert named == labelled == [anchors.SCALES_PER_OCTAVE, len(anchors.ASPECT_RATIOS[0])]
    elif folder == "d_ohem" and row.name != "focal":
        ohem = retinanet.OHEM
        assert named[:2] == labelled == [ohem.BATCH_SIZE, ohem.NMS_THRESH]
        assert ohem.POSITIVE_FRACTION == (0.25 if row.name.endswith("1to3") else 0)
        assert ("1:3" in row.label) == row.name.endswith("1to3")
        assert retinanet.CLS_LOSS == "ohem"
    elif folder == "fl_star":
        assert named == labelled == [retinanet.FOCAL_LOSS_GAMMA, retinanet.FOCAL_STAR_BETA]
        assert (retinanet.CLS_LOSS, retinanet.FOCAL_LOSS_ALPHA) == ("focal_star", 0.25)


@pytest.mark.parametrize(
    "name, num_anchors",
    [
        ("c_anchors/scales_4_ratios_3", 12),
        ("d_ohem/batch_512_nms_0.5_1to3", 9),
        ("fl_star/gamma_4_beta_0", 9),
        ("no_prior", 9),
        ("class_specific_boxes", 9),
        ("no_fpn", 45),
    ],
)
def test_a_row_of_each_kind_trains_and_detects(name: str, num_anchors: int) -> None:
    model = Trainer.build_model(get_config(find_paper_config(f"{name}.yaml"), SMALL))
    head = model.head
    boxes = 4 if name == "class_specific_boxes" else 1
    assert head.cls_score.weight.shape[0] == num_anchors * 4
    assert head.bbox_pred.weight.shape[0] == num_anchors * boxes * 4
    prior = torch.tensor(0.5 if name == "no_prior" else 0.01)
    torch.testing.assert_close(head.cls_score.bias.sigmoid(), prior.expand(num_anchors * 4))
    images = [random_image(128, 160, 5, num_classes=4) for _ in range(2)]
    losses = model(images)
    assert all(loss > 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    with torch.no_grad():
        assert all(len(x["instances"]) > 0 for x in model.eval()(images))


def test_no_fpn_sees_the_last_layer_alone() -> None:
    cfg = get_config(find_paper_config("no_fpn.yaml"), SMALL)
    backbone = build_backbone(cfg).eval()
    resnet = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    resnet.load_state_dict(backbone.bottom_up.state_dict())
    image = torch.randn(1, 3, 96, 128)
    (c5,) = resnet(image).values()
    lateral, output = backbone.fpn_lateral5, backbone.fpn_output5
    expected = F.conv2d(
        F.conv2d(c5, lateral.weight, lateral.bias), output.weight, output.bias, padding=1
    )
    assert expected.shape == (1, 16, 96 // 32, 128 // 32)
    torch.testing.assert_close(backbone(image)["p5"], expected)


def test_no_fpn_has_the_anchor_shapes_of_all_levels() -> None:
    cfg = get_config(find_paper_config("no_fpn.yaml"))
    (one,) = build_anchor_generator(cfg, [ShapeSpec(stride=32)]).cell_anchors
    five = RetinaNetAnchorGenerator(strides=[8, 16, 32, 64, 128]).cell_anchors
    torch.testing.assert_close(one, torch.cat(list(five)), rtol=2e-4, atol=0)
