"""Which token scale is enough for an image and a question."""
