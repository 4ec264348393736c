"""Clients of object stores: Google Cloud Storage, and S3 with stores of its
interface."""
