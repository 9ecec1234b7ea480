"""How the shapes network of the demo is trained and evaluated."""
