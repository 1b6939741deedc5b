"""The paper's tables of results: its numbers, and the config that repeats each row.

The numbers are those of arXiv 1708.02002v2, tables 1 and 3 and section 5.1, on COCO. The configs
repeat them in comments.
"""

from dataclasses import dataclass
from pathlib import Path

from .common import CONFIGS


@dataclass(frozen=True)
class Row:
    """One experiment.

    Args:
        name: unique in its table, and usable as a file name.
        label: what distinguishes it in its table, for people.
        config: its file, relative to the folder of this project's configs.
        ap, ap50, ap75: in percent, as the paper prints them; None if it does not.
        milliseconds: per image on an Nvidia M40; None if the paper does not say.
    """

    name: str
    label: str
    config: str
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    milliseconds: float | None = None

    @property
    def path(self) -> Path:
        """Path of the config."""
        return CONFIGS / self.config


@dataclass(frozen=True)
class Table:
    """Experiments that are compared with one another.

    Args:
        name: also the folder of its configs, if it has one.
        title: what is compared.
        rows: in the paper's order.
        data: what the paper evaluated on.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    data: str = "COCO minival"


def _row(config: str, label: str, *results: float | None) -> Row:
    """Returns a row named after its config."""
    return Row(Path(config).name, label, f"{config}.yaml", *results)


_A_ALPHA = Table(
    "a_alpha",
    "Cross entropy, balanced by alpha (table 1a)",
    (
        _row("a_alpha/alpha_0.10", "alpha 0.10", 0.0, 0.0, 0.0),
        _row("a_alpha/alpha_0.25", "alpha 0.25", 10.8, 16.0, 11.7),
        _row("a_alpha/alpha_0.50", "alpha 0.50", 30.2, 46.7, 32.8),
        _row("a_alpha/alpha_0.75", "alpha 0.75", 31.1, 49.4, 33.0),
        _row("a_alpha/alpha_0.90", "alpha 0.90", 30.8, 49.7, 32.3),
        _row("a_alpha/alpha_0.99", "alpha 0.99", 28.7, 47.4, 29.9),
        _row("a_alpha/alpha_0.999", "alpha 0.999", 25.1, 41.7, 26.1),
    ),
)

_B_GAMMA = Table(
    "b_gamma",
    "Focal loss, with the best alpha for each gamma (table 1b)",
    (
        _row("b_gamma/gamma_0.0", "gamma 0, alpha 0.75", 31.1, 49.4, 33.0),
        _row("b_gamma/gamma_0.1", "gamma 0.1, alpha 0.75", 31.4, 49.9, 33.1),
        _row("b_gamma/gamma_0.2", "gamma 0.2, alpha 0.75", 31.9, 50.7, 33.4),
        _row("b_gamma/gamma_0.5", "gamma 0.5, alpha 0.50", 32.9, 51.7, 35.2),
        _row("b_gamma/gamma_1.0", "gamma 1, alpha 0.25", 33.7, 52.0, 36.2),
        _row("b_gamma/gamma_2.0", "gamma 2, alpha 0.25", 34.0, 52.5, 36.5),
        _row("b_gamma/gamma_5.0", "gamma 5, alpha 0.25", 32.2, 49.6, 34.8),
    ),
)

_C_ANCHORS = Table(
    "c_anchors",
    "Anchors per location (table 1c)",
    (
        _row("c_anchors/scales_1_ratios_1", "1 scale, 1 ratio", 30.3, 49.0, 31.8),
        _row("c_anchors/scales_2_ratios_1", "2 scales, 1 ratio", 31.9, 50.0, 34.0),
        _row("c_anchors/scales_3_ratios_1", "3 scales, 1 ratio", 31.8, 49.4, 33.7),
        _row("c_anchors/scales_1_ratios_3", "1 scale, 3 ratios", 32.4, 52.3, 33.9),
        _row("c_anchors/scales_2_ratios_3", "2 scales, 3 ratios", 34.2, 53.1, 36.5),
        _row("c_anchors/scales_3_ratios_3", "3 scales, 3 ratios", 34.0, 52.5, 36.5),
        _row("c_anchors/scales_4_ratios_3", "4 scales, 3 ratios", 33.8, 52.1, 36.2),
    ),
)

_D_OHEM = Table(
    "d_ohem",
    "Online hard example mining and the focal loss, ResNet-101 (table 1d)",
    (
        _row("d_ohem/batch_128_nms_0.7", "OHEM 128, 0.7", 31.1, 47.2, 33.2),
        _row("d_ohem/batch_256_nms_0.7", "OHEM 256, 0.7", 31.8, 48.8, 33.9),
        _row("d_ohem/batch_512_nms_0.7", "OHEM 512, 0.7", 30.6, 47.0, 32.6),
        _row("d_ohem/batch_128_nms_0.5", "OHEM 128, 0.5", 32.8, 50.3, 35.1),
        _row("d_ohem/batch_256_nms_0.5", "OHEM 256, 0.5", 31.0, 47.4, 33.0),
        _row("d_ohem/batch_512_nms_0.5", "OHEM 512, 0.5", 27.6, 42.0, 29.2),
        _row("d_ohem/batch_128_nms_0.5_1to3", "OHEM 1:3 128, 0.5", 31.1, 47.2, 33.2),
        _row("d_ohem/batch_256_nms_0.5_1to3", "OHEM 1:3 256, 0.5", 28.3, 42.4, 30.3),
        _row("d_ohem/batch_512_nms_0.5_1to3", "OHEM 1:3 512, 0.5", 24.0, 35.5, 25.8),
        _row("d_ohem/focal", "focal loss", 36.0, 54.9, 38.7),
    ),
)

_E_SPEED = Table(
    "e_speed",
    "Depth and image size (table 1e)",
    (
        _row("e_speed/R50_400", "ResNet-50, 400 pixels", 30.5, 47.8, 32.7, 64),
        _row("e_speed/R50_500", "ResNet-50, 500 pixels", 32.5, 50.9, 34.8, 72),
        _row("e_speed/R50_600", "ResNet-50, 600 pixels", 34.3, 53.2, 36.9, 98),
        _row("e_speed/R50_700", "ResNet-50, 700 pixels", 35.1, 54.2, 37.7, 121),
        _row("e_speed/R50_800", "ResNet-50, 800 pixels", 35.7, 55.0, 38.5, 153),
        _row("e_speed/R101_400", "ResNet-101, 400 pixels", 31.9, 49.5, 34.1, 81),
        _row("e_speed/R101_500", "ResNet-101, 500 pixels", 34.4, 53.1, 36.8, 90),
        _row("e_speed/R101_600", "ResNet-101, 600 pixels", 36.0, 55.2, 38.7, 122),
        _row("e_speed/R101_700", "ResNet-101, 700 pixels", 37.1, 56.6, 39.8, 154),
        _row("e_speed/R101_800", "ResNet-101, 800 pixels", 37.8, 57.5, 40.8, 198),
    ),
    data="COCO test-dev",
)

# The first two rows are also rows of other tables.
_FL_STAR = Table(
    "fl_star",
    "Another focal loss, FL* (table 3)",
    (
        _row("a_alpha/alpha_0.75", "cross entropy", 31.1, 49.4, 33.0),
        _row("b_gamma/gamma_2.0", "FL, gamma 2", 34.0, 52.5, 36.5),
        _row("fl_star/gamma_2_beta_1", "FL*, gamma 2, beta 1", 33.8, 52.7, 36.3),
        _row("fl_star/gamma_4_beta_0", "FL*, gamma 4, beta 0", 33.9, 51.8, 36.4),
    ),
)

# Sections 4 and 5.1 say in words: cross entropy diverges without the prior; the last layer alone
# gives a low AP; class-specific boxes are as good.
_VARIANTS = Table(
    "variants",
    "What the paper says without a table",
    (
        _row("b_gamma/gamma_2.0", "default", 34.0, 52.5, 36.5),
        _row("class_specific_boxes", "class-specific boxes"),
        _row("no_fpn", "last ResNet layer only"),
        _row("cross_entropy", "cross entropy", 30.2),
        _row("no_prior", "cross entropy, no prior"),
    ),
)

TABLES = {
    table.name: table
    for table in (_A_ALPHA, _B_GAMMA, _C_ANCHORS, _D_OHEM, _E_SPEED, _FL_STAR, _VARIANTS)
}
