"""Tests of the image brand, and what builds images for them."""
