"""From raw scores to an ordering: sort, scale, threshold, cut-offs, calibration, evidence."""
