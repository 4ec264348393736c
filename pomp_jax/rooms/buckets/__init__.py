"""Clients of object stores: Google Cloud Storage, and S3 with stores of its interface.

fsspec opens one by the scheme of a URL, as `files.paths` registers them from
`registry.STORES`. Start with `objects`, which holds what both stores share.
"""
