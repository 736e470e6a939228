"""Model export to ONNX and TorchScript."""
