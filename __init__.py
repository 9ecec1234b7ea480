"""The plugin, as a package for Ikomia."""
