"""densebench: score the dense features of any backbone under every published convention at once."""

__version__ = "0.1.0"
