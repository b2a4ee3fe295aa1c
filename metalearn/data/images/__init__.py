"""Sets of images: their sources and the splits of their classes."""
