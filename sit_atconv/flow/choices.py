"""The names of the training objective's choices, without what implements them: losses.py, which imports PyTorch."""

WEIGHTINGS = ("none", "velocity", "likelihood")
TIME_SAMPLINGS = ("uniform", "logit-normal")
