"""Linear readouts of residuals, in closed form and cross-fitted by case family. Knows arrays; knows no persona."""
