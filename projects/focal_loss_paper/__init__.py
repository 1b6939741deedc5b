"""Tables and figures of "Focal Loss for Dense Object Detection" (arXiv 1708.02002)."""
