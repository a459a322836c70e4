"""`./hearth bench`: the budget table, measured on a running platform over real HTTP."""
