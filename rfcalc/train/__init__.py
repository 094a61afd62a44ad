"""Training that verifies an accuracy claim: data, augmentation, recipe, loop, verdict and the record of a run."""
