"""The demo: segments a synthetic scene or your own pictures through the plugin."""
