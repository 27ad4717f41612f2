"""Outlines what lies at a point (x, y): python run_onnx.py image.npy X Y masks.npy"""

import sys

import numpy as np
import onnxruntime

if __name__ == "__main__":
    encoder, decoder = map(onnxruntime.InferenceSession, ("encoder.onnx", "decoder.onnx"))
    image = np.load(sys.argv[1])  # uint8 RGB; np.asarray(Image.open(photo).convert("RGB"))
    (embeddings,) = encoder.run(None, {"image": image})
    points = np.array([[sys.argv[2:4], [0, 0]]], np.float32)  # one prompt; −1 says: no more points
    labels = np.array([[1, -1]], np.int32)
    none = {
        "masks": np.zeros((1, *decoder.get_inputs()[3].shape[1:]), np.float32),
        "has_mask": [False],
    }
    prompt = {"embeddings": embeddings, "points": points, "labels": labels} | none
    logits, low_res, iou = decoder.run(["logits", "low_res", "iou"], prompt)
    np.save(sys.argv[4], logits[0, 1:] > 0)  # the three for prompts that can mean several things
    print("expected IoU of each:", iou[0, 1:])
