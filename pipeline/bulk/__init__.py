"""The way of an image: corpus, decode, predict, encode, commit, flow."""
