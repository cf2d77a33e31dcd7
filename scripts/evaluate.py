"""The same as `taugrad evaluate`."""

from taugrad.cli import evaluate

if __name__ == "__main__":
    evaluate()
