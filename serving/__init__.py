"""Servers that run models whose visual tokens a method of vtc's prunes: one folder per server."""
