"""Code that tests of several files share."""
