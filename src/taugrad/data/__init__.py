"""The embedded data set, IDX reading, and the datamodule; whole sets in memory, batches by index."""
