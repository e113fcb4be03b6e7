"""One subject a file: table to plotted numbers, numbers to axes."""
