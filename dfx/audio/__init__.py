"""Reading, writing and measuring audio: each basic operation once."""
