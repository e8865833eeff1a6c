"""What decides, on the loop and without waiting: buffers, places, lanes, the policy, submissions and their ends."""
