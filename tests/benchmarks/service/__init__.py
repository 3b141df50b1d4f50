"""What the service's benchmark measures: requests, pages, listeners, downloads, claims."""
