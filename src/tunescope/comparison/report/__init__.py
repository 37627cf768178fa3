"""What people read of a comparison: the HTML page and its figures, and the terminal's table."""
