"""Measurements of the plugin, compared with direct use of the sam3 package."""
