"""Downloads of published data sets, and their preparation as paired recordings."""
