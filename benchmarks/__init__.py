"""Measurements against peers that run in the same session: `python -m benchmarks.encoder --help`.

encoder        SAM's image encoder: transformers, segment_anything
joint_forward  three tasks of one image: PyTorch mSAM on either encoder
train_step     one step of the NYUv2 recipe: the same, with autograd and Adam
adapters       what the adapters cost beyond the frozen encoder
input          what the data pipeline delivers, and what a train step waits for it
sam_parity     one's own checkpoint and image: the original's masks and ours
tpu            the train step compiled for TPUs that need not be here: memory, communication
"""
