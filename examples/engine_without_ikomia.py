"""Use SAM 3 through the engine, without Ikomia.

Usage: python -m examples.engine_without_ikomia IMAGE
"""

import sys

import numpy as np
from PIL import Image

from sam3_engine import ConceptPrompt, GeometricPrompt, Options, label_map, open_predictor, read_image

image = read_image(sys.argv[1])
height, width = image.shape[:2]

predictor = open_predictor()  # finds the weights, or downloads them

# Every instance of a phrase
segments = predictor.predict(image, ConceptPrompt(phrases=("wheel",)), Options(confidence_threshold=0.3))
for segment in segments:
    print(f"{segment.label}, score {segment.score:.3f}, box {np.round(segment.box)}, {segment.mask.sum()} pixels")

# The object in the middle, three candidates; the image is encoded only once
middle = GeometricPrompt(points=((width / 2, height / 2),), point_labels=(1,))
for candidate in predictor.predict(image, middle, Options(multimask=True)):
    print(f"middle, score {candidate.score:.3f}, {candidate.mask.sum()} pixels")

# One image whose pixel value k is the k-th instance
Image.fromarray(label_map(segments[:255], width, height)).save("wheels.png")
