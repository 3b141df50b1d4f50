"""One file = one check; the file name is the API name."""
