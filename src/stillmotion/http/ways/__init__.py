"""How calls come in: hosts and paths, connections, the proxy route, who is calling."""
