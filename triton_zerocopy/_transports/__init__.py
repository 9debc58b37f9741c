"""How requests reach a server."""
