"""Making models: corpora, trainers, labels, alignment."""
