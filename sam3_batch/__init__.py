"""Segment folders of images with Ray, on one machine or on a cluster.

python -m sam3_batch photos results --input_text shoe --workers 2
python -m sam3_batch s3://bucket/photos s3://bucket/results --input_text shoe --workers 1-64
"""
