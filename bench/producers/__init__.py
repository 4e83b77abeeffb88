"""Producers: what trains a checkpoint, one file each, found through the entry points `bench.producers`."""
