"""From features to predictions over tokens."""
