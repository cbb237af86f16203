"""Scorers in another process or environment, over HTTP: the client, the server, and a server of the official packages.

What they say to each other stands in `server.py`.
"""
