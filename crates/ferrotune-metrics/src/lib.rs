//! Text metrics equal to the Python references: ROUGE with bootstrap intervals.
