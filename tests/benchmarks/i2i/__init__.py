"""Image-to-image unlearning, measured: who completes what, after which method, and how fast."""
