"""Weights in the layouts of PyTorch packages: facebookresearch/deit, timm and transformers."""
