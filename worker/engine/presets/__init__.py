"""Named settings of methods that have too many to stand beside their code."""
