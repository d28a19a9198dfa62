"""A pytest plugin that teaches nbval the book's reports and claims."""
