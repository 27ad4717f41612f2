"""Between PyTorch's names of SAM and mSAM and this project's: the only place that knows both."""
