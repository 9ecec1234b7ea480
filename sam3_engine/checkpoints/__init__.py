"""Checkpoints of SAM 3: what a file is, and what its tensors are called.

A :mod:`.weight_files` file is opened, recognized by its :mod:`.layouts`, and fitted to a network by :mod:`.checkpoint`.
"""
