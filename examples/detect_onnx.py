"""Detects objects in an image with ONNX Runtime, numpy and OpenCV only.

python detect_onnx.py model.onnx street.jpg drawn.png
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

model, source, target = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
expected, resize = metadata["input"], metadata["resize"]

image = cv2.imread(source)  # (height, width, 3), uint8, BGR, with EXIF orientation applied
if image is None:
    sys.exit(f"{source}: OpenCV cannot read it as an image")
size = np.array(image.shape[1::-1])  # width, height
scale = min(resize["short_side"] / size.min(), resize["long_side"] / size.max())
new_size = np.floor(size * scale + 0.5).astype(int)
method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
resized = cv2.resize(image, new_size.tolist(), interpolation=method)
resized = resized[:, :, ::-1] if expected["channels"] == "RGB" else resized
resized = resized.transpose(2, 0, 1) if expected["layout"] == "nchw" else resized
batch = np.ascontiguousarray(resized[None], dtype=expected["dtype"])

boxes, scores, classes, _ = (x[0] for x in session.run(None, {expected["name"]: batch}))
for box, score, class_id in zip(boxes, scores, classes, strict=True):  # zeros after the last
    if score > 0.5:
        box = np.rint(box * np.tile(size / new_size, 2)).astype(int).tolist()
        label = f"{metadata['classes'][class_id]} {score:.2f}"
        print(label, *box)  # left, top, right, bottom
        cv2.rectangle(image, box[:2], box[2:], (0, 159, 230), 2)
        cv2.putText(image, label, (box[0], max(box[1] - 4, 12)), 0, 0.5, (0, 159, 230))
cv2.imwrite(target, image)
