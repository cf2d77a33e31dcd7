"""The same as `taugrad bench`."""

from taugrad.cli import bench

if __name__ == "__main__":
    bench()
