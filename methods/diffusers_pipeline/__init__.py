"""Any text-to-image pipeline of the diffusers library as a method."""
