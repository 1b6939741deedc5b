"""detectron2's dataset mapper, with errors that name the image."""

from typing import Any

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils

from ..errors import UserError
from .images import open_image, read_image, reason_of


class ReadableDatasetMapper(DatasetMapper):
    """detectron2's mapper for training and testing, with errors that name the image.

    Raises:
        UserError: when called on an image that is missing, damaged, in none of
            ``images.FORMATS``, larger than PIL's guard against decompression bombs allows, or not
            of the size that the annotations say.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            with open_image(dataset_dict["file_name"]):
                pass  # the header is in order
            return super().__call__(dataset_dict)
        except Exception:
            # The file is at fault only if it also fails alone; otherwise an augmentation is.
            fault = _fault_when_decoded(dict(dataset_dict), self.image_format)
            if fault is None:
                raise
            raise UserError(f"{dataset_dict['file_name']}: {fault}.") from None


def _fault_when_decoded(dataset_dict: dict[str, Any], image_format: str) -> str | None:
    try:
        image = read_image(dataset_dict["file_name"], image_format)
        utils.check_image_size(dataset_dict, image)
    except utils.SizeMismatchError:
        return (
            f"the image is {image.shape[1]} x {image.shape[0]}, but its annotations say "
            f"{dataset_dict['width']} x {dataset_dict['height']}; correct width and height there"
        )
    except Exception as error:  # PIL's decoders raise nearly everything on damaged files
        return f"the image cannot be read ({reason_of(error)}); replace the file or its entry"
    return None
