"""How the organism is trained and measured; imported by ``experiments/train_organism.py`` only."""
