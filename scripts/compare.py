"""The same as `taugrad compare`."""

from taugrad.cli import compare

if __name__ == "__main__":
    compare()
