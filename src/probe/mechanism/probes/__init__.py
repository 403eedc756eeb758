"""Probes of the residual stream with nulls that respect cases. Knows arrays and cases; knows no model."""
