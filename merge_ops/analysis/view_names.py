"""The pictures of a study, by the names that a user chooses them by."""

SPECTRUM = "spectrum"
VIEWS = ("similarity", "sign_conflict", "norms", SPECTRUM)
