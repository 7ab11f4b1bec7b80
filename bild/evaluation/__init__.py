"""One run, timed, scored and written down."""
