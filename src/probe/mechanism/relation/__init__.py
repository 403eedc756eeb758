"""Where a persona acts, and what its shift inside says of the disagreement outside. Knows tables and residuals."""
