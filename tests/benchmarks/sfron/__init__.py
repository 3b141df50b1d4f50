"""Measurements of SFR-on and its baselines; `make bench-sfron` and its siblings run them."""
