"""Sets of images: where they come from and how their classes are split."""
