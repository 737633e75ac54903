"""Ray: started closed to others, watched in a process of its own, and used as a pool of workers."""
