"""Scorers that run a model in this process: the only place that may import torch or ONNX Runtime."""
