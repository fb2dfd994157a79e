"""From a goal, such as the smallest file within a point, to the methods that meet it."""
