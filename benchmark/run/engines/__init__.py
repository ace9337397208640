"""Engines run a plan's tasks. They share one loop (`running`) and one store; `inline` is the default."""
