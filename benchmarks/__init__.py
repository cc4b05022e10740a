"""This library and its peers in one race: ``make bench``."""
