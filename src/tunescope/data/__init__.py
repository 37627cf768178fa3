"""Read rows, check them, render templates, tokenize with loss masks, bucket into batches."""
