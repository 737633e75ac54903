"""Reading and writing of audio and video files."""
