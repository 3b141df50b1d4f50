"""What the gate says of models that only seem to have forgotten, and of models that never knew."""
