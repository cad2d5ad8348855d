"""Customer photographs in, clean images and one good caption each out."""
