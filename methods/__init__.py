"""The erasers, one file each, and the few blocks they share."""

if not __name__.startswith("overpaint."):
    raise ImportError(f"this folder is the package 'overpaint.methods'; do not import it as {__name__!r}")
