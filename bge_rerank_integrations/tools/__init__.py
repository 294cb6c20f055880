"""Checks and conversions of models: doctor, export, model cards."""
