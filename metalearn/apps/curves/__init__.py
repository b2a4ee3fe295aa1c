"""Few-shot regression of functions of one variable."""
