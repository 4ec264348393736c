"""What is recognised: class names, labelled images, and their way to the devices."""
