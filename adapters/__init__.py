"""The built-in methods: one file each, found through the entry points `bench.adapters`."""
