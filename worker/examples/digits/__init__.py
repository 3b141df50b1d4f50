"""Handwritten digits: scikit-learn's bundled scans, and a class-conditional DDPM trained on them."""
