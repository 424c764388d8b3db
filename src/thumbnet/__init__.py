"""thumbnet: train a classifier of thumbnail-sized pictures from scratch, in minutes, on the machine at hand."""

__version__ = "0.1.0"
