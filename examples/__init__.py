"""The engine at work in larger programs."""
