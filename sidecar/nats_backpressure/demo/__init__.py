"""The main job on a real server: programs that stand for a gateway and a router, and the story they tell."""
