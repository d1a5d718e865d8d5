"""Image decoding: a file's bytes to upright pixels, in this process or in crash-isolated child processes."""
