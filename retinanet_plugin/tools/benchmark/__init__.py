"""Time and memory beside detectron2's RetinaNet and torchvision's."""
