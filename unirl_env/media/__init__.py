"""Pictures from wherever they are, as tensors: paths and `data:` URIs, opened within bounds."""
