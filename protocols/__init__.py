"""The built-in protocols: one file each, found through the entry points `bench.protocols`."""
