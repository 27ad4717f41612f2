"""ONNX files of trained models and of promptable SAMs, and the scripts that come with them."""
