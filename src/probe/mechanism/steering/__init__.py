"""Prompting a persona against steering towards it: doses, what is recovered, controls, costs. Knows arrays alone."""
