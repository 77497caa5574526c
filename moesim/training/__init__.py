"""One iteration of training a Mixture-of-Experts model: time, communication, memory."""
