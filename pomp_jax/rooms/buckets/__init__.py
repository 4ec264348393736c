"""Clients of object stores: Google Cloud Storage, and S3 or stores with S3's interface.

`files.paths` registers the clients of `registry.STORES` with fsspec, which opens a
client by the scheme of a URL. Start with `base_store`,
whose class both clients extend.
"""
