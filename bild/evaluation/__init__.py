"""One run, timed, scored and written down."""

from bild.errors import require

require("eval", "datasets", "rouge_score", "sacrebleu", "tqdm")
