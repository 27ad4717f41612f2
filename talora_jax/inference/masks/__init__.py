"""Masks of everything in an image, what they are, and the files that tell."""
