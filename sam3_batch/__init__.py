"""Segment folders of images on Ray, on one machine or a cluster."""
