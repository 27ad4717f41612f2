"""SAM's parts, the TA-LoRA adapters and the multi-task model built from them."""
