"""Training a promptable SAM from masks: what is other than in multi-task training."""
