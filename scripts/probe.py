"""The same as `taugrad probe`."""

from taugrad.cli import probe

if __name__ == "__main__":
    probe()
