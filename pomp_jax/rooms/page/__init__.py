"""The page in the browser: pictures under prompts side by side, and runs."""
