"""Detects objects in a picture by ONNX Runtime, numpy and OpenCV alone.

python detect_onnx.py model.onnx street.jpg found.png
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

model, source, target = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
wanted, resize = about["input"], about["resize"]

picture = cv2.imread(source)  # (height, width, 3), uint8, BGR, turned upright
if picture is None:
    sys.exit(f"{source}: no picture that OpenCV can read")
sides = np.array(picture.shape[1::-1])  # width, height
scale = min(resize["short_side"] / sides.min(), resize["long_side"] / sides.max())
size = np.floor(sides * scale + 0.5).astype(int)
method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
given = cv2.resize(picture, size.tolist(), interpolation=method)
given = given[:, :, ::-1] if wanted["channels"] == "RGB" else given
given = given.transpose(2, 0, 1) if wanted["layout"] == "nchw" else given
batch = np.ascontiguousarray(given[None], dtype=wanted["dtype"])

boxes, scores, classes, _ = (x[0] for x in session.run(None, {wanted["name"]: batch}))
for box, score, kind in zip(boxes, scores, classes, strict=True):  # zeros after the last
    if score > 0.5:
        box = np.rint(box * np.tile(sides / size, 2)).astype(int).tolist()
        label = f"{about['classes'][kind]} {score:.2f}"
        print(label, *box)  # left, top, right, bottom
        cv2.rectangle(picture, box[:2], box[2:], (0, 159, 230), 2)
        cv2.putText(picture, label, (box[0], max(box[1] - 4, 12)), 0, 0.5, (0, 159, 230))
cv2.imwrite(target, picture)
