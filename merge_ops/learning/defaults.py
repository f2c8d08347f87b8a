"""What distilling does where nothing else is asked for; the first of ``STARTS`` is what it starts from."""

STARTS = ("calibrated", "linear")
STEPS, LEARNING_RATE = 100, 0.1
