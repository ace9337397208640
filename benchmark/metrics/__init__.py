"""Metrics: pure functions of stored scores. One module a family; `conf/metrics/*.yaml` names which are computed."""
