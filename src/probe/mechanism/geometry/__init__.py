"""The persona's shift as geometry: norms, cosines, shared parts, makers of directions. Knows arrays and cases."""
