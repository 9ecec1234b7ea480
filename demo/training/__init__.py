"""How the shapes network is trained, in pieces: :mod:`demo.train` puts them together."""
