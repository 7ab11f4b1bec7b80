"""Where models come from: names, files, what fits together."""
