"""What keeps a prompt near the words that it replaces: its start, its loss, its
average."""
