"""One file = one unlearning method; the file name is the API name."""
