"""The same as `taugrad export`."""

from taugrad.cli import export

if __name__ == "__main__":
    export()
