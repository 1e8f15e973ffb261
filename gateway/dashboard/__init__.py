"""The web pages at `/`: what happens now, what it costs, and why; rendered by the server."""
