"""From a config to an adapter file; knows `data`, `tasks`, `weighting` and `weights`, and is used
by `experiments`."""
