"""What a whole fleet with traffic goes through: one experiment of each kind of trouble."""
