"""One file = one model family; the file name is the API name."""
