"""Scorers that run a model in this process: alone in importing torch and ONNX Runtime."""
