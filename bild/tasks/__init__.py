"""What is decoded: the tasks as data, their examples and metrics."""
