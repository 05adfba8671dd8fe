"""What nodes draw, and pictures as the host has them: tensors of [pictures, height, width, channels] from 0 to 1."""
