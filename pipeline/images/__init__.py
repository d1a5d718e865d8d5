"""Image decoding: bytes of a file to pixels, in process or in crash-isolated child processes."""
