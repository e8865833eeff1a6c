"""The only door to wgpu-py: nothing outside of this folder touches its private parts."""
