"""Files of texts in, files of outputs out: `bild generate`. The core's packages are enough."""
