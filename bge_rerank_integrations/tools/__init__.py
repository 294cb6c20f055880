"""Checks and conversions of models: doctor, race, verify, export, model cards."""
