"""What the cluster knows about itself: members, regions, synchronization objects, ranks."""
