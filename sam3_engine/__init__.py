"""SAM 3 image segmentation by text, points and boxes, independent of Ikomia.

The way of the data: :mod:`~.prompts` turns what the user typed into checked prompts, :mod:`~.weights`
finds the checkpoint, :mod:`~.model` loads it, and :mod:`~.predictor` turns an image and a prompt into
segments. Importing this package imports neither torch nor sam3.
"""
