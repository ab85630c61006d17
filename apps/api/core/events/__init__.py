"""What happens in a session: frames, the log that stores them, the relay that carries them."""
