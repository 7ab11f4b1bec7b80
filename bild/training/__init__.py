"""Making models: corpora, trainers, labels, alignment."""

from bild.errors import require

require("train", "accelerate", "datasets", "matplotlib", "sentencepiece", "tabulate", "tqdm")
