"""Measuring models: frozen questions, scoring, tables, outcome rows."""
