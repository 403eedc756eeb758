"""The label lens: what the unembedding's label rows read from residuals, by layer. Knows arrays; knows no model."""
