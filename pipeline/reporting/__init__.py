"""A comparison as a page that can be read anywhere, and what trials and features take on disk."""
