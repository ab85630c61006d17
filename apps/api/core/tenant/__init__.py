"""What a tenant keeps beside its sessions."""
