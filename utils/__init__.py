"""What every room needs of the machine: flags, devices, memory, processes, files. Imports nothing of ours."""
