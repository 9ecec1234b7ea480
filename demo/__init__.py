"""The demo: segments drawn scenes or your own pictures through the plugin."""
