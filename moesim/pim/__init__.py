"""Devices with a second processor near the memory: Logic-PIM and its kind (arXiv 2409.01141)."""
