"""Models of images: plain modules that state their loss."""
