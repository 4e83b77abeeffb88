"""Saliency estimators: one file each, found through the entry points `bench.estimators`."""
