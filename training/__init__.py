"""Training and evaluation of the demo's shapes network."""
