"""Memory that this process and the server both map."""
