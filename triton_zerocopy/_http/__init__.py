"""HTTP/1.1 as a client speaks it, and nothing of Triton."""
