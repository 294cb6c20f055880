"""ONNX graphs on ONNX Runtime and OpenVINO; works without torch."""
