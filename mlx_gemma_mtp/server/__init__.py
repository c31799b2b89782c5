"""The HTTP server: the protocols of other servers' clients, on one engine.

A protocol's file turns bodies into `Asked` and chunks into its own events. Everything else is
shared: how requests are submitted, streamed, cancelled, refused and counted.
"""
