"""The comparison with the paper: ``python -m dfx.paper`` trains its models and ours, and writes one table."""
