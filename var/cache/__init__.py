"""What models remember of the groups they have read."""
