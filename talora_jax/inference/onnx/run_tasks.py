"""What the model sees in an image: python run_onnx.py image.npy predictions.npz"""

import sys

import numpy as np
import onnxruntime

if __name__ == "__main__":
    model = onnxruntime.InferenceSession("model.onnx")
    image = np.load(sys.argv[1])  # uint8 RGB; np.asarray(Image.open(photo).convert("RGB"))
    images = np.repeat(image[None], model.get_inputs()[0].shape[0], axis=0)
    names = [output.name for output in model.get_outputs()]
    arrays = dict(zip(names, model.run(None, {"images": images}), strict=True))
    np.savez(sys.argv[2], **{name: array[0] for name, array in arrays.items()})
