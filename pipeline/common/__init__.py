"""What every module may use: errors, files, commands, progress, the digest of code."""
