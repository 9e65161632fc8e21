"""The prediction gateway: auth, limit, validate, split, predict, record.

Importing this package loads no server and no torch; `Gateway` is in `pipelines.gateway.server`.
"""
