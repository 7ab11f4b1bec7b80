"""Is this machine ready, and what to do where it is not: `bild doctor`."""
