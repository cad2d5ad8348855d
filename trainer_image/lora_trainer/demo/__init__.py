"""The web page: draw with finished adapters, look at jobs, review captions."""
