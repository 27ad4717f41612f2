"""Measurements, most of them against peers that run in the same session: `python -m
benchmarks.encoder --help`.

encoder          SAM's image encoder: transformers, segment_anything
joint_forward    three tasks of one image: PyTorch mSAM on either encoder
train_step       one step of the NYUv2 recipe: the same, with autograd and Adam
adapters         what the adapters cost beyond the frozen encoder
input            what the data pipeline delivers, and what a train step waits for it
sam_parity       one's own checkpoint and image: the original's masks and ours
automatic_masks  automatic masks: segment_anything's generator
mask_recall      how many of the things in an image automatic masks find, and name rightly
predict          images predicted in batches, and one after the other
startup          how long a user waits for a first prediction, a first step, a finished run
evidence         the runs behind docs/evidence.md
going_on         what an adapter of other data is worth as a start
gpu              on a GPU in bfloat16: the first three, by each kernel of attention
tpu              the train step compiled for TPUs that need not be here: memory, communication
"""
