"""The front of house: HTTP, rows, ledger, certificates, storage. Never imports torch, never imports the worker."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("expunge")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0+source"
