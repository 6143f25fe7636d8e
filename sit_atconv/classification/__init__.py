"""Training and evaluation of image classifiers: AttNet, and any other model of timm."""
