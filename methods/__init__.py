"""The methods, one file each. `overpaint.methods.eraser` has their base class."""

if not __name__.startswith("overpaint."):
    raise ImportError(f"this folder is the package 'overpaint.methods'; do not import it as {__name__!r}")
