"""The same as `taugrad train`."""

from taugrad.cli import train

if __name__ == "__main__":
    train()
